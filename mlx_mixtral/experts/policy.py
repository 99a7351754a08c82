"""Which experts of a layer stay in memory: bookkeeping alone, without any tensors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

FADING = 0.5
"""What a token's odds still count for at the next token. Of the values tried on recorded traces
the best (`make routing`): the smaller, the more it is the last token alone that counts."""


class Policy(Protocol):
    """Says what it is worth to keep an expert."""

    def used(self, experts: Sequence[int], odds: Sequence[float]) -> None:
        """One more token has chosen these experts, its router having given all of them odds."""
        ...

    def worth(self, expert: int) -> float:
        """The lowest goes first."""
        ...


class Fading:
    """What the router thought of an expert lately, chosen or not: what was nearly chosen by the
    last tokens is likely to be chosen by the next ones."""

    def __init__(self, experts: int, fading: float = FADING) -> None:
        self._worth = [0.0] * experts
        self._fading = fading

    def used(self, experts: Sequence[int], odds: Sequence[float]) -> None:
        self._worth = [
            worth * self._fading + odd for worth, odd in zip(self._worth, odds, strict=True)
        ]

    def worth(self, expert: int) -> float:
        return self._worth[expert]


class Slots:
    """Which expert lies in which of a layer's slots.

    Attributes:
        slot_of: the slot of each expert that has one.
    """

    def __init__(self, count: int) -> None:
        self.slot_of: dict[int, int] = {}
        self._free = list(range(count))[::-1]
        self.count = count

    def victim(self, policy: Policy, keep: Collection[int]) -> int | None:
        """The expert that has to go for another one; None: there is a free slot."""
        if self._free:
            return None
        return min((e for e in self.slot_of if e not in keep), key=policy.worth)

    def drop(self, expert: int) -> None:
        """Its slot is free again."""
        self._free.append(self.slot_of.pop(expert))

    def place(self, expert: int) -> int:
        """A free slot for an expert, taken by it."""
        slot = self.slot_of[expert] = self._free.pop()
        return slot


@dataclass
class Counters:
    """What streaming came to, all layers together.

    Attributes:
        rows: tokens, each once a layer.
        asked: experts that were needed, each once a layer and pass; ``hits`` of them were in
            memory, ``ahead`` of the hits because they had been read before they were asked for.
        reads: experts read; ``wasted`` of them ahead, and dropped without having been asked for.
        bytes: read from disk.
        reading: seconds in which something was being read; in ``waiting`` of them nothing else
            could be done.
    """

    rows: int = 0
    asked: int = 0
    hits: int = 0
    ahead: int = 0
    reads: int = 0
    wasted: int = 0
    bytes: int = 0
    reading: float = 0.0
    waiting: float = 0.0

    def copy(self) -> Counters:
        return Counters(**asdict(self))

    def since(self, before: Counters) -> Counters:
        """What has been added."""
        old = asdict(before)
        return Counters(**{name: value - old[name] for name, value in asdict(self).items()})

    def told(self, layers: int) -> Streamed:
        """As a person asks for it."""
        tokens = self.rows / layers
        a_token = self.bytes / tokens if tokens else 0.0
        rate = self.bytes / self.reading if self.reading else 0.0
        return Streamed(
            hit_rate=self.hits / self.asked if self.asked else 1.0,
            ahead_rate=self.ahead / self.asked if self.asked else 0.0,
            wasted=self.wasted / self.reads if self.reads else 0.0,
            bytes_a_token=a_token,
            disk_rate=rate,
            waiting_s=self.waiting / tokens if tokens else 0.0,
            bound_tps=rate / a_token if self.bytes else None,
        )


@dataclass(frozen=True)
class Streamed:
    """How it goes with experts that are read when they are chosen.

    Attributes:
        hit_rate: share of the experts asked for that were in memory, 0 to 1; ``ahead_rate``
            because they had been read before they were asked for.
        wasted: share of the reads that nobody asked for.
        bytes_a_token: read from disk.
        disk_rate: bytes a second, while something was being read.
        waiting_s: seconds a token in which there was nothing to do but to read.
        bound_tps: tokens a second that the disk allows, were nothing else to be done; None where
            nothing was read.
    """

    hit_rate: float
    ahead_rate: float
    wasted: float
    bytes_a_token: float
    disk_rate: float
    waiting_s: float
    bound_tps: float | None
