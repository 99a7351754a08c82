"""What a model takes of the machine's memory, before it is taken.

A Mac that is asked for more than it has does not say no: it swaps until it stands still. So the
need is computed from the headers of the files, and compared with what can be had.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import mlx.core as mx

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.errors import ModelError
from mlx_mixtral.generation.kv import KVSettings, kv_bytes
from mlx_mixtral.generation.prefill import MOST_SCORES, chunk_after

LEAST_CONTEXT = 512
"""Tokens of context without which there is no use in a chat model."""
LEFT_TO_MACOS = 5 << 30
"""What a raised limit has to leave for macOS and other programs: a judgement, not a fact; a Mac
at rest takes about as much."""


def total_memory() -> int:
    """Bytes of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory() -> int:
    """Bytes that arrays can still take on the default device.

    On a Mac that is what macOS grants the GPU, less what MLX holds; on Linux what the
    kernel calls available; elsewhere all of the machine's memory.
    """
    granted = mx.device_info().get("max_recommended_working_set_size")
    if granted:
        return max(0, int(granted) - mx.get_active_memory())
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return total_memory()


def activation_bytes(config: ModelConfig, dtype: mx.Dtype, tokens: int) -> int:
    """What is in memory at once while a layer computes ``tokens`` of a prompt, keys, values and
    the scores of attention aside.

    Most where the experts multiply: the hidden states before and after the norm, and for each
    expert that a token chose its copy of them, gate and up together and apart, and their product.
    """
    paths = config.num_experts_per_tok if config.is_moe else 1
    row = 2 * config.hidden_size + paths * (config.hidden_size + 5 * config.intermediate_size)
    return tokens * row * dtype.size


def working_bytes(config: ModelConfig, dtype: mx.Dtype) -> int:
    """What computing a chunk of a prompt takes here, keys and values aside.

    Where attention is not fused, its scores may take more than anything else.
    """
    context, scores = config.max_position_embeddings, 0
    if mx.default_device() == mx.Device(mx.cpu):
        places = chunk_after(config, context) * config.num_attention_heads * context
        scores = 2 * min(MOST_SCORES, places * 4)  # and as much for their softmax
    return activation_bytes(config, dtype, min(chunk_after(config, 0), context)) + scores


def context_that_fits(
    config: ModelConfig, weights: int, dtype: mx.Dtype, kv: KVSettings, free: int
) -> int:
    """Tokens of context that there is memory for, at most the model's own.

    Args:
        weights: bytes of the weights in memory.
        dtype: of the activations.
        free: bytes that can be taken.

    Raises:
        ModelError: there is not even room for ``LEAST_CONTEXT``; one line with what is
            needed, what there is, and what can be done.
    """
    most, work = config.max_position_embeddings, working_bytes(config, dtype)
    room = free - weights - work
    least = min(LEAST_CONTEXT, most)
    if kv_bytes(config, least, kv, dtype) > room:
        rest = work + kv_bytes(config, least, kv, dtype)
        raise ModelError(_too_much(weights, rest, free, config.is_moe))
    fits, fails = least, most + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if kv_bytes(config, middle, kv, dtype) <= room:
            fits = middle
        else:
            fails = middle
    return fits


def _too_much(weights: int, rest: int, free: int, streamable: bool) -> str:
    ways = "convert it with fewer bits (`mixtral-mlx plan` tells what fits)"
    if streamable:
        ways += f", have experts read from disk as they are needed (`--memory {_most(free)}`)"
    if (limit := raised_limit_mb(weights + rest, total_memory())) and sys.platform == "darwin":
        ways += f", let the GPU have more (`sudo sysctl iogpu.wired_limit_mb={limit}`)"
    return (
        f"its weights take {weights / 1e9:.1f} GB and working with them {rest / 1e9:.1f} GB, but "
        f"{free / 1e9:.1f} GB are free here: {ways}, or try all the same with --force"
    )


def _most(free: int) -> str:
    """Nearly all that is free, as a person would say it."""
    amount = 0.95 * free
    return f"{amount / 1e9:.0f}GB" if amount >= 2e9 else f"{amount / 1e6:.0f}MB"


def raised_limit_mb(need: int, memory: int) -> int | None:
    """What ``iogpu.wired_limit_mb`` has to be for ``need`` bytes, in MiB as the setting counts.

    None where too little of the machine's memory would be left.
    """
    return -(-need // (1 << 20)) if need <= memory - LEFT_TO_MACOS else None


def keep_in_memory(weights: int, kv: int, work: int) -> None:
    """Have macOS keep what a model needs in memory, and no more; without a Mac, nothing.

    Wiring all that the GPU may take, as others do, has brought machines to a halt
    (github.com/ml-explore/mlx, issue 3186). MLX's store of freed buffers is bounded too.
    """
    granted = mx.device_info().get("max_recommended_working_set_size")
    if granted and mx.metal.is_available():
        mx.set_wired_limit(min(weights + kv, int(granted)))
        mx.set_cache_limit(work)
