"""What others have reported for Mixtral 8x7B on Macs: figures to hold a measurement against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reported:
    """A speed that somebody else measured, and nobody here could repeat.

    Attributes:
        machine: the Mac.
        program: what ran, with its quantization as far as it was told.
        decode_tps: tokens of the answer a second.
        source: whose figure it is, and what is uncertain about it.
        chip, bandwidth: of the machine, as ``lab.chips`` has them.
        bits: of the weights; 4 where it was not told, as nearly everybody runs it.
    """

    machine: str
    program: str
    decode_tps: float
    source: str
    chip: str
    bandwidth: float
    bits: int


MIXTRAL_8X7B = (
    Reported(
        "M3 Max, 128 GB", "MLX, 16 bit", 13.0, "a user's report; 87 GB in use",
        "M3 Max", 400e9, 16,
    ),
    Reported("M2 Max", "llama.cpp, Q8_0", 22.9, "a user's report", "M2 Max", 400e9, 8),
    Reported("M2 Max", "llama.cpp, Q4_0", 36.7, "a user's report", "M2 Max", 400e9, 4),
    Reported(
        "M2 Ultra", "llama.cpp", 52.0, "a user's report; quantization not stated",
        "M2 Ultra", 800e9, 4,
    ),
    Reported(
        "M2 Ultra (likely)", "mlx-lm, 4 bit", 59.3, "a user's report; machine not stated",
        "M2 Ultra", 800e9, 4,
    ),
)  # fmt: skip

_LLAMA = "github.com/ggml-org/llama.cpp/discussions/4167"
LLAMA_7B = tuple(
    Reported(chip, "llama.cpp, Q4_0", tps, _LLAMA, chip, bandwidth * 1e9, 4)
    for chip, bandwidth, tps in (
        ("M1 Ultra", 800, 83.7),
        ("M2 Ultra", 800, 94.3),
        ("M3 Ultra", 819, 92.1),
        ("M4 Pro", 273, 50.7),
        ("M4 Max", 546, 83.1),
        ("M5 Max", 614, 102.9),
        ("M5 Max", 614, 119.1),
    )
)
"""A dense model much like Mistral 7B; a Q4_0 has the bytes of 4 bits in groups of 64."""
