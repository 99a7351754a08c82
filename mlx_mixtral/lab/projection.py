"""How fast a model might be whose experts are read from a Mac's SSD: projected, not measured.

Three things make it up: how many of the chosen experts are found in memory, how fast the SSD reads
the others, and the time of a token with all of them in memory. Each has a low and a high figure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlx_mixtral.lab.chips import Chip, Mac

HITS_PUBLISHED = {0: 0.0, 2: 0.40, 4: 0.60, 8: 1.0}
"""Of eight experts a layer so many in memory: share of the chosen ones found there, for Mixtral
8x7B with LRU (Eliseev and Mazur 2023, arXiv:2312.17238, and others after them) ..."""
HITS_HERE = {0: 0.0, 2: 0.448, 3: 0.583, 4: 0.689, 5: 0.780, 6: 0.863, 7: 0.937, 8: 1.0}
"""... and for the demo model with this program's policy (`make routing`)."""

SSD = {
    "M1": (2.7, 3.0),
    "M2": (1.6, 3.0),
    "M3": (2.9, 3.0),
    "M4": (2.0, 3.0),
    "M5": (6.3, 6.3),
    "M1+": (5.4, 5.8),
    "M4+": (5.4, 7.3),
    "M5+": (7.3, 13.6),
}
"""GB/s of sequential reading, by generation, and "+" for Pro, Max and Ultra; of a generation that
is not listed, the one before it. Reviewers' figures with Blackmagic's disk test: M1 Air 256 GB
(wccftech), M2 and M3 Air 256 and 512 GB (Ars Technica, 12 March 2024), M4 and M5 MacBook Pro
(tomshardware.com, M5 MacBook Pro's SSD), M1 and M2 Pro (Macworld), M5 Max and, from its gain, M4
Max with 4 TB (The Verge, 2026). They depend on the SSD's size."""
REACHED = 0.7
"""Share of sequential reading that experts are read with here: 0.6 to 1 (`bench --memory`)."""
READ_BACK = (0.35e-3, 0.2e-3)
"""Seconds a layer to learn on the host what the router chose, as others measured on Macs."""


@dataclass(frozen=True)
class FromDisk:
    """A form of a model that does not fit, with experts read from the SSD.

    Attributes:
        experts: a layer, that there is room for on average.
        tokens_a_second: the least and the most to hope for.
    """

    experts: float
    tokens_a_second: tuple[float, float]


def from_disk(
    mac: Mac,
    room: int,
    expert_bytes: int,
    layers: int,
    experts: int,
    chosen: int,
    resident: tuple[float, float],
) -> FromDisk | None:
    """What streaming comes to; None where there is no room for one expert a layer.

    Args:
        room: bytes for experts.
        expert_bytes: of one, on average.
        experts, chosen: a layer has, and a token takes.
        resident: tokens a second were everything in memory, the least and the most.
    """
    slots = min(experts, room / expert_bytes / layers)
    if slots < 1:
        return None
    low, high = ssd(mac.chip)
    eighths = 8 * slots / experts
    rates = []
    for hits, reading, back, whole in zip(
        (HITS_PUBLISHED, HITS_HERE), (REACHED * low, high), READ_BACK, resident, strict=True
    ):
        missed = (1 - _between(hits, eighths)) * chosen * layers * expert_bytes
        rates.append(1 / (1 / whole + missed / reading + layers * back))
    return FromDisk(slots, (rates[0], rates[1]))


def ssd(chip: Chip) -> tuple[float, float]:
    """Bytes a second of sequential reading, at least and at most."""
    match = re.match(r"M(\d+)( ?)", chip.name)
    generation, plus = (int(match[1]), "+" * bool(match[2])) if match else (1, "")
    while f"M{generation}{plus}" not in SSD:
        generation -= 1
    low, high = SSD[f"M{generation}{plus}"]
    return low * 1e9, high * 1e9


def _between(points: dict[int, float], x: float) -> float:
    """Linearly, between the neighbouring points."""
    below = max(n for n in points if n <= x)
    above = min(n for n in points if n >= x)
    if below == above:
        return points[below]
    return points[below] + (points[above] - points[below]) * (x - below) / (above - below)
