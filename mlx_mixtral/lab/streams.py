"""Experts read from disk, measured: hits, bytes, and what the disk can do at best."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_mixtral.experts.files import F_NOCACHE
from mlx_mixtral.experts.policy import Streamed
from mlx_mixtral.lab.runs import Side
from mlx_mixtral.streaming import Streaming

AT_ONCE = 1 << 23
PROBED = 1 << 30


@dataclass(frozen=True)
class Streams:
    """What one prompt and its answer came to.

    Attributes:
        slots: for each layer, how many of its ``experts`` are in memory at a time.
        share: of all experts in memory, 0 to 1.
        prompt_bytes: read for the prompt, from whatever was in memory.
        answer: for the tokens after the first one.
        needed: bytes a token that the answer's misses come to, nothing being read for nothing.
        sequential: bytes a second of reading the same files from end to end, in one thread,
            past the system's cache.
    """

    slots: tuple[int, ...]
    experts: int
    share: float
    prompt_bytes: int
    answer: Streamed
    needed: float
    sequential: float


def measure_streams(streaming: Streaming, side: Side, prompt: list[int], count: int) -> Streams:
    """Run once, ``count`` tokens being two or more."""
    counters = streaming.stream.counters
    mx.synchronize()
    start = counters.copy()
    steps = side.tokens(prompt, count, None)
    next(steps)
    first = counters.copy()
    for _ in steps:
        pass
    answered = counters.since(first)
    layers = len(streaming.slots)
    told = answered.told(layers)
    # An expert that was read ahead and used is no miss, but had to be read.
    misses = answered.asked - answered.hits + answered.ahead
    each = answered.bytes / answered.reads if answered.reads else 0.0
    return Streams(
        slots=streaming.slots,
        experts=streaming.experts,
        share=streaming.share,
        prompt_bytes=first.since(start).bytes,
        answer=told,
        needed=misses * each / (answered.rows / layers),
        sequential=sequential_rate(streaming.stream.files.paths),
    )


def sequential_rate(paths: Iterable[Path], at_most: int = PROBED) -> float:
    """Bytes a second of reading files from end to end, up to ``at_most`` bytes in all."""
    read, seconds, buffer = 0, 0.0, bytearray(AT_ONCE)
    for path in paths:
        if read >= at_most:
            break
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if sys.platform == "darwin":
                fcntl.fcntl(descriptor, F_NOCACHE, 1)
            elif hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            while read < at_most and (count := os.readv(descriptor, [buffer])):
                read += count
            seconds += time.perf_counter() - start
        finally:
            os.close(descriptor)
    return read / seconds
