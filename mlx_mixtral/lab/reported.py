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
    """

    machine: str
    program: str
    decode_tps: float
    source: str


MIXTRAL_8X7B = (
    Reported("M3 Max, 128 GB", "MLX, 16 bit", 13.0, "a user's report; 87 GB in use"),
    Reported("M2 Max", "llama.cpp, Q8_0", 22.9, "a user's report"),
    Reported("M2 Max", "llama.cpp, Q4_0", 36.7, "a user's report"),
    Reported("M2 Ultra", "llama.cpp", 52.0, "a user's report; quantization not stated"),
    Reported("M2 Ultra (likely)", "mlx-lm, 4 bit", 59.3, "a user's report; machine not stated"),
)
