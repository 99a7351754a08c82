"""Prefill: a prompt through the model, in chunks."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.model.transformer import Transformer


def prefill_chunk() -> int:
    """Tokens of a prompt computed at once.

    On a GPU long chunks keep it busy, but short enough for the display's watchdog; the CPU
    backend writes all attention scores of a chunk to memory (heads x chunk x context).
    """
    return 512 if mx.default_device() == mx.Device(mx.cpu) else 2048


def prefill(
    model: Transformer, cache: PromptCache, prompt: list[int], interrupted: Callable[[], bool]
) -> mx.array | None:
    """Logits [1, V] after the prompt, of which ``cache`` may hold a part; None when interrupted."""
    chunk, start = prefill_chunk(), len(cache.tokens)
    while not interrupted():
        ids = mx.array([prompt[start : start + chunk]])
        hidden = model.hidden(ids, cache.layers, last=1)[:, -1]
        # One chunk at a time: its activations are freed before the next one's are made.
        mx.eval(hidden)
        mx.clear_cache()
        start += chunk
        if start >= len(prompt):
            return model.head(hidden)
    return None
