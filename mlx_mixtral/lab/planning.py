"""Before anything is fetched: what a model takes on a Mac, whether that fits, and how fast it is.

Sizes are counted from the tensors that a conversion writes, as they are in memory once loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_mixtral.budget import PROGRAM
from mlx_mixtral.config import ModelConfig
from mlx_mixtral.generation.kv import STEP, KVSettings, kv_bytes
from mlx_mixtral.lab.chips import Mac
from mlx_mixtral.lab.projection import FromDisk, from_disk
from mlx_mixtral.lab.roofline import Traffic, traffic_of
from mlx_mixtral.lab.speed import pace
from mlx_mixtral.memory import activation_bytes, raised_limit_mb
from mlx_mixtral.network import weight_dtype

CHUNK = 2048
"""Tokens of a prompt that a GPU computes at once (see ``generation.prefill``)."""

Tensors = Mapping[str, tuple[tuple[int, ...], mx.Dtype]]
"""Shape and dtype of everything stored, by name."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model's weights.

    Attributes:
        disk: in its files.
        resident: in memory, where the router is in float32.
        read: by a token, with an empty context.
    """

    disk: int
    resident: int
    read: Traffic


def footprint(stored: Tensors, config: ModelConfig, activations: mx.Dtype) -> Footprint:
    """Of what is stored, loaded for computing in ``activations``."""
    counts = {name: math.prod(shape) for name, (shape, _) in stored.items()}
    held = {
        name: count * _held(name, stored[name][1], activations).size
        for name, count in counts.items()
    }
    disk = sum(count * stored[name][1].size for name, count in counts.items())
    return Footprint(disk, sum(held.values()), traffic_of(held, config))


def _held(name: str, dtype: mx.Dtype, activations: mx.Dtype) -> mx.Dtype:
    """What loading makes of a tensor: codes and shared exponents stay as they are."""
    return weight_dtype(name, activations) if mx.issubdtype(dtype, mx.floating) else dtype


def gpu_dtype(stored: Tensors) -> mx.Dtype:
    """What a Mac computes a model in."""
    return mx.float16 if stored["model.norm.weight"][1] == mx.float16 else mx.bfloat16


@dataclass(frozen=True)
class Use:
    """How a model is to be used.

    Attributes:
        context: tokens of text that keys and values are kept for.
        kv: how they are kept.
    """

    context: int
    kv: KVSettings = field(default_factory=KVSettings)


@dataclass(frozen=True)
class Estimate:
    """One form of a model on one Mac.

    Attributes:
        name: of the recipe, or of the model as it is.
        disk, resident: bytes of weights there.
        kv: bytes of keys and values once the context is full.
        work: bytes that computing takes besides.
        gpu_limit: bytes that the GPU may take.
        wired_limit_mb: what ``iogpu.wired_limit_mb`` has to be for it to fit; None where it
            fits without, or not at all.
        tokens_a_second: from a full context to an empty one, at the slowest and the fastest
            that ``lab.speed`` takes from others' reports.
        from_disk: where it does not fit, what reading experts from the SSD might come to.
    """

    name: str
    disk: int
    resident: int
    kv: int
    work: int
    gpu_limit: int
    wired_limit_mb: int | None
    tokens_a_second: tuple[float, float]
    from_disk: FromDisk | None = None

    @property
    def need(self) -> int:
        """Bytes of memory in all."""
        return self.resident + self.kv + self.work

    @property
    def fits(self) -> bool:
        """Without raising the limit."""
        return self.need <= self.gpu_limit

    @property
    def possible(self) -> bool:
        """At least with a raised limit."""
        return self.fits or self.wired_limit_mb is not None


def estimate(name: str, stored: Tensors, config: ModelConfig, use: Use, mac: Mac) -> Estimate:
    """What a form of a model comes to.

    Raises:
        UsageError: heads that ``use.kv`` cannot quantize.
    """
    dtype = gpu_dtype(stored)
    weights = footprint(stored, config, dtype)
    kv, work = kv_bytes(config, use.context, use.kv, dtype), activation_bytes(config, dtype, CHUNK)
    a_token = kv_bytes(config, STEP, use.kv, dtype) / STEP
    seen = min(use.context, use.kv.window or use.context, config.sliding_window or use.context)
    need = weights.resident + kv + work
    speed = pace(config.is_moe).tokens_a_second(
        config.num_hidden_layers,
        mac.chip.bandwidth,
        weights.read.total,
        weights.read.total + a_token * seen,
    )
    streamed = None
    if config.is_moe and need > mac.gpu_limit:
        layers, experts, k = (
            config.num_hidden_layers,
            config.num_local_experts,
            config.num_experts_per_tok,
        )
        each = weights.read.experts // (k * layers)
        room = mac.gpu_limit - need + each * layers * experts - PROGRAM
        streamed = from_disk(mac, room, each, layers, experts, k, speed)
    return Estimate(
        name,
        weights.disk,
        weights.resident,
        kv,
        work,
        mac.gpu_limit,
        None if need <= mac.gpu_limit else raised_limit_mb(need, mac.memory),
        speed,
        streamed,
    )


def recommended(estimates: Sequence[Estimate], *, raised: bool = False) -> Estimate | None:
    """Of forms from the best to the smallest, the first that fits; None where none does.

    What needs a raised limit counts where nothing fits without, or with ``raised`` anyway.

    16 bits are passed over where 8 fit too: twice the bytes, half the speed, and no difference
    in perplexity that llama.cpp's table for Mixtral would show (Q8_0).
    """
    usable = [e for e in estimates if e.name != "16bit"] or estimates
    possible = [e for e in usable if e.possible]
    fitting = [e for e in usable if e.fits]
    return next(iter(possible if raised or not fitting else fitting), None)
