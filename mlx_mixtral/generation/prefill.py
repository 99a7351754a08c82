"""Prefill: a prompt through the model, in chunks."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.model.transformer import Transformer
from mlx_mixtral.tuning import tuned

MOST_ROWS = 32_768
"""Rows of one product with the stacked experts that MLX is known to multiply rightly; a token
takes one for each expert that it chose (github.com/ml-explore/mlx, issue 3856)."""
MOST_SCORES = 1 << 28
"""Bytes that a layer's attention scores may take where attention is not fused."""
LEAST_CHUNK = 32


def prefill_chunk() -> int:
    """Tokens of a prompt computed at once: as tuned for this machine, or the usual number."""
    return tuned().prefill_chunk or usual_chunk()


def usual_chunk() -> int:
    """Where nothing was tuned.

    On a GPU long chunks keep it busy, but short enough for the display's watchdog; the CPU
    backend's memory is better spent on less.
    """
    return 512 if _on_cpu() else 2048


def chunk_after(config: ModelConfig, context: int) -> int:
    """``prefill_chunk``, or fewer where memory or MLX's limits ask for it.

    Args:
        context: tokens that the cache holds already. The CPU backend writes the score of each
            of them with each token of the chunk, in float32 for every head.
    """
    chunk = min(prefill_chunk(), MOST_ROWS // config.num_experts_per_tok)
    if _on_cpu():
        row = 4 * config.num_attention_heads * (context + chunk)
        chunk = min(chunk, max(LEAST_CHUNK, MOST_SCORES // row))
    return chunk


def _on_cpu() -> bool:
    return mx.default_device() == mx.Device(mx.cpu)


def prefill(
    model: Transformer, cache: PromptCache, prompt: list[int], interrupted: Callable[[], bool]
) -> mx.array | None:
    """Logits [1, V] after the prompt, of which ``cache`` may hold a part; None when interrupted."""
    start = len(cache.tokens)
    while not interrupted():
        chunk = chunk_after(model.config, start)
        ids = mx.array([prompt[start : start + chunk]])
        hidden = model.hidden(ids, cache.layers, last=1)[:, -1]
        # One chunk at a time: its activations are freed before the next one's are made.
        mx.eval(hidden)
        mx.clear_cache()
        start += chunk
        if start >= len(prompt):
            return model.head(hidden)
    return None
