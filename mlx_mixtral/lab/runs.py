"""Runs of a side, timed: a prompt, then an answer, token by token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.generation.loop import generate_tokens
from mlx_mixtral.generation.prompt_cache import PromptCache, make_caches
from mlx_mixtral.generation.sampling import Sampler, Sampling
from mlx_mixtral.model.transformer import Transformer

Tell = Callable[[str], None]
OURS = "mlx-mixtral"


@dataclass(frozen=True)
class Side:
    """A program that is measured.

    Attributes:
        tokens: from a prompt and a number of tokens to an iterator that yields once a token,
            when its number has arrived from the device. Given caches, the prompt continues
            the tokens that they hold, and they take up prompt and answer.
        caches: makes empty KV caches, one a layer, in a list.
        dtype: of keys and values.
    """

    tokens: Callable[[list[int], int, list[Any] | None], Iterator[Any]]
    caches: Callable[[], list[Any]]
    dtype: mx.Dtype


def our_side(model: Transformer, config: ModelConfig) -> Side:
    """This program's loop. It knows no end tokens, so that an answer is as long as asked."""

    def tokens(prompt: list[int], count: int, caches: list[Any] | None = None) -> Iterator[Any]:
        cache = PromptCache(config)
        if caches is not None:
            cache.layers, cache.tokens = caches, [0] * caches[0].offset
        whole = [*cache.tokens, *prompt]
        sampler = Sampler(Sampling(max_tokens=count), whole)
        return generate_tokens(model, cache, whole, sampler, count)

    return Side(tokens, lambda: list(make_caches(config)), model.model.norm.weight.dtype)


def prompt_of(length: int, config: ModelConfig) -> list[int]:
    """Token ids that differ, so that all experts have work; the same for every side."""
    first = min(3, config.vocab_size - 1)  # the ids below are the control tokens
    return [first + (7 * n) % (config.vocab_size - first) for n in range(length)]


class Run(NamedTuple):
    """One prompt and its answer: seconds to the first token, tokens a second of the prompt,
    and of the answer after its first token."""

    ttft_s: float
    prefill_tps: float
    decode_tps: float


def measure(side: Side, prompt: list[int], count: int, caches: list[Any] | None = None) -> Run:
    """Run once, ``count`` tokens being two or more."""
    mx.synchronize()
    start = time.perf_counter()
    times = [time.perf_counter() for _ in side.tokens(prompt, count, caches)]
    first = times[0] - start
    return Run(first, len(prompt) / first, (count - 1) / (times[-1] - times[0]))


def alternate(
    sides: Mapping[str, Side], prompt: list[int], count: int, repeat: int, tell: Tell
) -> dict[str, list[Run]]:
    """Every side ``repeat`` times, in turns."""
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for turn in range(repeat):
        for name, side in sides.items():
            tell(f"{name}: {len(prompt)} tokens in, run {turn + 1} of {repeat}")
            runs[name].append(measure(side, prompt, count))
    return runs


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Ours over theirs: the median over the pairs, which a drift of the machine leaves alone."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))


@dataclass(frozen=True)
class Speeds:
    """What a side took, each as in ``Run``."""

    ttft_s: Spread
    prefill_tps: Spread
    decode_tps: Spread

    @classmethod
    def of(cls, runs: Iterable[Run]) -> Speeds:
        return cls(*(Spread.of(values) for values in zip(*runs, strict=True)))
