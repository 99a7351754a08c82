"""The keys and values of one token sequence, and how much of them the next prompt can use."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.generation.borrowed import KVCache, RotatingKVCache


def make_caches(config: ModelConfig) -> list[KVCache | RotatingKVCache]:
    """An empty KV cache a layer; a ring of the window's size where attention has a window."""
    window = config.sliding_window
    return [
        RotatingKVCache(max_size=window) if window else KVCache()
        for _ in range(config.num_hidden_layers)
    ]


class PromptCache:
    """KV caches that know which tokens they hold, so that a prompt pays for its new ones only."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.layers = make_caches(self._config)
        self.tokens: list[int] = []

    def reuse(self, prompt: Sequence[int]) -> int:
        """Keep the longest common prefix with ``prompt``; how many tokens that is.

        The last token of the prompt is never counted: it has to be computed to be continued.
        """
        shared = 0
        for mine, theirs in zip(self.tokens, prompt[:-1], strict=False):
            if mine != theirs:
                break
            shared += 1
        self._keep(shared)
        return len(self.tokens)

    def settle(self, sequence: Sequence[int]) -> None:
        """Take note that the caches were fed ``sequence`` from its start; drop the rest."""
        self.drop(max(0, self.layers[0].offset - len(sequence)))
        self.tokens = list(sequence[: self.layers[0].offset])

    def spare(self) -> int:
        """How many more tokens the caches can take and ``drop`` again: until a ring is full."""
        window = self._config.sliding_window
        return window - 1 - self.layers[0].offset if window else sys.maxsize

    def drop(self, count: int) -> None:
        """Take back the last ``count`` tokens that the caches were fed, of those in ``spare``."""
        for layer in self.layers:
            layer.trim(count)

    def _keep(self, count: int) -> None:
        """Drop all but the first ``count`` tokens; a full ring cannot go back and drops all."""
        surplus = self.layers[0].offset - count
        if surplus and not all(layer.is_trimmable() for layer in self.layers):
            self.reset()
            return
        self.drop(surplus)
        del self.tokens[count:]
