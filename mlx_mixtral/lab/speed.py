"""How fast a Mac will decode, from what others have measured on Macs.

A token's time is that of fetching its bytes, and something for each layer that no bandwidth
shortens: dozens of kernels that are started one after the other. In the reports on Mixtral 8x7B
(``lab.reported``) that something is 0.25 to 0.41 ms, whether a token has 7 or 25 GB to fetch at
400 or at 800 GB/s, while the share of the bandwidth that was reached goes from 47 % to 83 %. So
a range of it makes a narrower prediction than a range of shares; a report's machine falls within
10 % of what the other four alone would say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import mlx.core as mx

from mlx_mixtral.config import ModelConfig, Quantization, QuantSpec
from mlx_mixtral.lab.reported import LLAMA_7B, MIXTRAL_8X7B, Reported
from mlx_mixtral.lab.roofline import traffic_of
from mlx_mixtral.lab.shapes import SHAPES, tensors

# Llama 2 7B (arXiv:2307.09288).
LLAMA = ModelConfig(32000, 4096, 11008, 32, 32, 32, 128, num_local_experts=0)


@dataclass(frozen=True)
class Pace:
    """What the reports say of a kind of model.

    Attributes:
        fast, slow: seconds a layer that a token takes besides the fetching of bytes.
        best_share: of the stated bandwidth, the most that anybody reached.
    """

    fast: float
    slow: float
    best_share: float

    def tokens_a_second(
        self, layers: int, bandwidth: float, bytes_a_token: float, bytes_at_most: float
    ) -> tuple[float, float]:
        """The least and the most to expect.

        The least: with the best share of the bandwidth and the slowest layers. The most: with
        the fastest layers, but never a better share than the best.

        Args:
            bytes_a_token: read for a token when the context is empty.
            bytes_at_most: when it is full.
        """
        reached = self.best_share * bandwidth
        low = 1 / (bytes_at_most / reached + layers * self.slow)
        high = 1 / (bytes_a_token / bandwidth + layers * self.fast)
        return low, min(high, reached / bytes_a_token)


@cache
def pace(moe: bool) -> Pace:
    """Of mixtures of experts or of dense models, which start fewer kernels a layer."""
    reports, config = (MIXTRAL_8X7B, SHAPES["8x7b"]) if moe else (LLAMA_7B, LLAMA)
    fetching = [reported_bytes(r, config) / r.bandwidth for r in reports]
    waits = [
        (1 / r.decode_tps - seconds) / config.num_hidden_layers
        for r, seconds in zip(reports, fetching, strict=True)
    ]
    return Pace(min(waits), max(waits), _best_share())


def reported_bytes(report: Reported, config: ModelConfig) -> int:
    """Bytes that a token read in a report, keys and values aside: the texts were short."""
    spec = None if report.bits == 16 else Quantization(QuantSpec(report.bits, 64))
    held = tensors(replace(config, quantization=spec), mx.bfloat16)
    sizes = {name: math.prod(shape) * dtype.size for name, (shape, dtype) in held.items()}
    return traffic_of(sizes, config).total


def _best_share() -> float:
    pairs = [*((r, SHAPES["8x7b"]) for r in MIXTRAL_8X7B), *((r, LLAMA) for r in LLAMA_7B)]
    return max(r.decode_tps * reported_bytes(r, config) / r.bandwidth for r, config in pairs)
