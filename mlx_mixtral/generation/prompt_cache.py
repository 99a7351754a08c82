"""The keys and values of one token sequence, and how much of them the next prompt can use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import copy

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.generation.kv import REWIND, KVSettings, LayerKV, Layout


def make_caches(config: ModelConfig, kv: KVSettings | None = None) -> list[LayerKV]:
    """An empty KV cache a layer."""
    layout = Layout.of(config, kv or KVSettings())
    return [LayerKV(layout) for _ in range(config.num_hidden_layers)]


def shared_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts have in common from their start."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count


class PromptCache:
    """KV caches that know which tokens they hold, so that a prompt pays for its new ones only.

    Attributes:
        kv: how keys and values are kept.
        layers: their caches, one a layer.
        tokens: the text that they were fed, windows notwithstanding from its start.
    """

    def __init__(self, config: ModelConfig, kv: KVSettings | None = None) -> None:
        self.kv = kv or KVSettings()
        self._config = config
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.layers = make_caches(self._config, self.kv)
        self.tokens: list[int] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, unused places included."""
        return sum(layer.nbytes for layer in self.layers)

    def reuse(self, prompt: Sequence[int]) -> int:
        """Keep the longest common prefix with ``prompt``; how many tokens that is.

        The last token of the prompt is never counted: it has to be computed to be continued.
        Where a window has left out what the next token would see, nothing is kept.
        """
        shared = shared_tokens(self.tokens, prompt[:-1])
        if shared < self.layers[0].earliest:
            self.reset()
        self.drop(self.layers[0].offset - shared if self.tokens else 0)
        del self.tokens[shared:]
        return len(self.tokens)

    def fork(self, length: int) -> PromptCache:
        """Another cache, of the first ``length`` of the ``tokens``; neither disturbs the other.

        They share memory until one of them takes more tokens in.

        Raises:
            ValueError: a window has left out what the next token would see (see ``LayerKV``).
        """
        twin = copy(self)
        twin.layers = [layer.fork(length) for layer in self.layers]
        twin.tokens = self.tokens[:length]
        return twin

    def settle(self, sequence: Sequence[int]) -> None:
        """Take note that the caches were fed ``sequence`` from its start; drop the rest."""
        self.drop(max(0, self.layers[0].offset - len(sequence)))
        self.tokens = list(sequence[: self.layers[0].offset])

    def spare(self) -> int:
        """How many more tokens the caches can take and ``drop`` again, at any time."""
        return sys.maxsize if self.layers[0].layout.window is None else REWIND

    def drop(self, count: int) -> None:
        """Take back the last ``count`` tokens that the caches were fed, of those in ``spare``."""
        for layer in self.layers:
            layer.trim(count)
