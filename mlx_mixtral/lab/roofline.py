"""The ceiling of decoding: how fast this machine reads memory, over what a token has to read.

A decoded token multiplies every weight in its path with one row, so its time is that of
fetching them. Bytes a second over bytes a token is the most tokens a second there can be
(the roofline of Williams, Waterman and Patterson 2009, on its memory-bound side).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import mlx.core as mx

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.experts.streamed import StreamedExperts
from mlx_mixtral.generation.kv import LayerKV
from mlx_mixtral.memory import free_memory
from mlx_mixtral.model.transformer import Transformer
from mlx_mixtral.network import arrays

STACKED_EXPERTS = ".switch_mlp."
EMBEDDING = "model.embed_tokens."
LARGEST_PROBE = 10**9
SMALLEST_PROBE = 1 << 26  # 64 MB: beyond the last cache of a Mac


@dataclass(frozen=True)
class Traffic:
    """Bytes that one decoded token reads, and of which kind.

    Attributes:
        shared: attention, norms, routers, dense layers, head: all of them, once.
        experts: k of the E stacked experts of every layer.
        embedding: the token's own row.
        kv: keys and values of the ``context`` tokens before it.
    """

    shared: int
    experts: int
    embedding: int
    kv: int
    context: int

    @property
    def total(self) -> int:
        return self.shared + self.experts + self.embedding + self.kv


def traffic(model: Transformer, config: ModelConfig, kv_per_token: float, context: int) -> Traffic:
    """Counted from the arrays that the model holds; see ``traffic_of``."""
    sizes = {name: array.nbytes for name, array in arrays(model).items()}
    for n, layer in enumerate(model.model.layers if config.is_moe else ()):
        if isinstance(experts := layer.block_sparse_moe.switch_mlp, StreamedExperts):
            sizes[f"{n}{STACKED_EXPERTS}"] = config.num_local_experts * experts.expert_bytes
    return traffic_of(sizes, config, kv_per_token, context)


def traffic_of(
    sizes: Mapping[str, int], config: ModelConfig, kv_per_token: float = 0, context: int = 0
) -> Traffic:
    """Counted from the bytes of each array in memory, by name.

    Args:
        kv_per_token: bytes of keys and values a token of context (``kv_bytes_per_token``).
        context: tokens before the one decoded; a sliding window reads no more than itself.
    """
    shared = experts = embedding = 0
    for name, nbytes in sizes.items():
        if STACKED_EXPERTS in name:
            experts += nbytes * config.num_experts_per_tok // config.num_local_experts
        elif name.startswith(EMBEDDING):
            embedding += nbytes // config.vocab_size
            if config.tie_word_embeddings:  # the same matrix is the head, and read whole
                shared += nbytes
        else:
            shared += nbytes
    seen = min(context, config.sliding_window or context)
    return Traffic(shared, experts, embedding, round(kv_per_token * seen), context)


def kv_bytes_per_token(layers: Iterable[LayerKV]) -> float:
    """Bytes of keys and values that a token takes in caches that were used.

    Caches grow in steps, so it is their bytes over the places in them.
    """
    return sum(layer.nbytes / layer.places for layer in layers)


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second between memory and the default device, as MLX reaches them.

    Attributes:
        read: reading alone.
        copy: reading and writing, both counted.
        probe_bytes: size of each array that was read or copied.
    """

    read: float
    copy: float
    probe_bytes: int

    @property
    def best(self) -> float:
        """What a ceiling has to be computed from: the most that was seen."""
        return max(self.read, self.copy)


def measure_bandwidth(probe_bytes: int | None = None, repeat: int = 5) -> Bandwidth:
    """Time a streaming read and a copy; the fastest of ``repeat`` counts, as in STREAM.

    Args:
        probe_bytes: by default a gigabyte, or a quarter of the free memory if that is less.
    """
    size = probe_bytes or max(SMALLEST_PROBE, min(LARGEST_PROBE, free_memory() // 4))
    # Rows of a megabyte, summed row by row into one: vectorized on a CPU, parallel on a GPU.
    width = 1 << 18
    source = mx.ones((max(2, size // (4 * width)), width))
    mx.eval(source)
    # Which of the two reductions is the faster depends on the device.
    reads = min(_fastest(lambda: source.sum(axis=0), repeat), _fastest(source.sum, repeat))
    copied, copies = _copy(source, repeat)
    mx.clear_cache()
    return Bandwidth(source.nbytes / reads, copied / copies, source.nbytes)


def _copy(source: mx.array, repeat: int) -> tuple[int, float]:
    """Bytes read and written, and the seconds of the fastest copy."""
    target = mx.zeros(source.shape)
    mx.eval(target)

    def copy() -> mx.array:
        target[1:] = source[1:]  # into memory that is there already; `+ 0` would ask for new
        return target

    return 2 * source[1:].nbytes, _fastest(copy, repeat)


def _fastest(work: Callable[[], mx.array], repeat: int) -> float:
    """Seconds of the fastest run, after one that warms up."""
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        mx.eval(work())
        mx.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
