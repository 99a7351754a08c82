"""Prefill and decode: token ids in, token ids out. Knows neither text nor files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx

from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler
from mlx_mixtral.model.transformer import Transformer


class Step(NamedTuple):
    """A generated token, and its log-probability (nats) under the model."""

    token: int
    logprob: float


def prefill_chunk() -> int:
    """Tokens of a prompt computed at once.

    On a GPU long chunks keep it busy, but short enough for the display's watchdog; the CPU
    backend writes all attention scores of a chunk to memory (heads x chunk x context).
    """
    return 512 if mx.default_device() == mx.Device(mx.cpu) else 2048


def generate_tokens(
    model: Transformer,
    cache: PromptCache,
    prompt: Sequence[int],
    sampler: Sampler,
    max_tokens: int,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Continue ``prompt`` by up to ``max_tokens`` tokens; the caller stops when it has enough.

    The step after the one yielded is already under way, so the device never waits for the
    caller. However this ends, ``cache`` then holds what was computed.

    Args:
        cache: what of the prompt is already known; ``reuse`` has been called for it.
        interrupted: asked between the chunks of the prompt; true ends without a token.
    """
    sequence = list(prompt)
    try:
        yield from _steps(model, cache, sequence, sampler, max_tokens, interrupted)
    except GeneratorExit:
        cache.settle(sequence)
        raise
    except BaseException:
        # It may have come between two layers, so what the caches hold is not known.
        cache.reset()
        raise
    cache.settle(sequence)


def _steps(
    model: Transformer,
    cache: PromptCache,
    sequence: list[int],
    sampler: Sampler,
    max_tokens: int,
    interrupted: Callable[[], bool],
) -> Iterator[Step]:
    """As ``generate_tokens``; appends to ``sequence`` each token that the caches hold or will."""
    logits = _prefill(model, cache, sequence, interrupted)
    if logits is None:
        return
    ahead = sampler(logits)
    mx.async_eval(*ahead)
    for n in range(1, max_tokens + 1):
        token, logprob = ahead
        if n < max_tokens:
            ahead = sampler(model(token[None], cache.layers)[:, -1])
            mx.async_eval(*ahead)
        sequence.extend(token.tolist())  # type: ignore[arg-type]
        yield Step(sequence[-1], *logprob.tolist())  # type: ignore[misc]


def _prefill(
    model: Transformer, cache: PromptCache, prompt: list[int], interrupted: Callable[[], bool]
) -> mx.array | None:
    """Logits [1, V] after the prompt, or None when interrupted."""
    chunk, start = prefill_chunk(), len(cache.tokens)
    while not interrupted():
        ids = mx.array([prompt[start : start + chunk]])
        hidden = model.hidden(ids, cache.layers)[:, -1]
        # One chunk at a time: its activations are freed before the next one's are made.
        mx.eval(hidden)
        mx.clear_cache()
        start += chunk
        if start >= len(prompt):
            return model.head(hidden)
    return None
