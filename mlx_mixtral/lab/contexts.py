"""Decoding after long contexts, and what a thousand tokens of context cost.

A prompt of 8,000 tokens would take mlx-lm's CPU backend half an hour. How long a token takes
does not depend on what the keys and values before it are, so the caches of all sides are
filled with the same random ones, and only the answer is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.lab.runs import Side, Spread, Tell, measure

USUAL = (100, 1000, 2000, 4000, 8000)


@dataclass(frozen=True)
class AtContext:
    """Decoding after ``context`` tokens, by side.

    Attributes:
        decode_tps: tokens a second.
        decode_ms: milliseconds a token.
    """

    context: int
    decode_tps: dict[str, Spread]
    decode_ms: dict[str, Spread]


@dataclass(frozen=True)
class Contexts:
    """Decoding over context.

    Attributes:
        slopes: by side, the milliseconds that a token takes longer for each 1,000 tokens of
            context: a straight line through each turn's measurements.
    """

    points: list[AtContext]
    slopes: dict[str, Spread]


def usual_contexts(limit: int) -> tuple[int, ...]:
    """The contexts to look at where none were named, of those up to ``limit``."""
    found = tuple(n for n in USUAL if n <= limit)
    return found if len(found) > 1 else tuple(sorted({max(1, limit // 8), limit}))


def over_contexts(
    sides: Mapping[str, Side],
    config: ModelConfig,
    contexts: tuple[int, ...],
    generate: int,
    repeat: int,
    tell: Tell,
) -> Contexts:
    """Every side at every context, in turns: ``repeat`` times through all of them."""
    ms: dict[str, list[list[float]]] = {name: [[] for _ in contexts] for name in sides}
    for turn in range(repeat):
        for n, context in enumerate(contexts):
            for name, side in sides.items():
                tell(f"{name}: after {context} tokens, run {turn + 1} of {repeat}")
                caches = filled(side, config, context)
                run = measure(side, [config.vocab_size - 1], generate, caches)
                ms[name][n].append(1000 / run.decode_tps)
    points = [
        AtContext(
            context,
            {name: Spread.of(1000 / one for one in ms[name][n]) for name in sides},
            {name: Spread.of(ms[name][n]) for name in sides},
        )
        for n, context in enumerate(contexts)
    ]
    return Contexts(points, {name: _slope(contexts, found) for name, found in ms.items()})


def filled(side: Side, config: ModelConfig, context: int) -> list[object]:
    """Caches that hold ``context`` tokens of random keys and values, the same for every side."""
    caches = side.caches()
    shape = (1, config.num_key_value_heads, context, config.head_dim)
    for number, cache in enumerate(caches):
        keys, values = (
            mx.random.uniform(-1, 1, shape, side.dtype, key)
            for key in mx.random.split(mx.random.key(number))
        )
        mx.eval(cache.update_and_fetch(keys, values))
    return caches


def _slope(contexts: tuple[int, ...], ms: list[list[float]]) -> Spread:
    """From milliseconds by context and turn; no slope without a second context."""
    if len(contexts) < 2:
        return Spread(0.0, 0.0, 0.0)
    return Spread.of(
        float(1000 * np.polyfit(contexts, turn, 1)[0]) for turn in zip(*ms, strict=True)
    )
