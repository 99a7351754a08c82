"""Keys and values of answers that are over, for prompts that begin alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlx_mixtral.generation.prompt_cache import PromptCache, shared_tokens

WORTH = 8
"""Tokens in common from which a copy is made of keys and values. A few already pay: the fewer are
read at once, the fewer experts are."""


class Prefixes:
    """As many as a number of bytes holds; the ones that were not used the longest go first.

    Attributes:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: list[PromptCache] = []  # the last used last

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, unused places included."""
        return sum(cache.nbytes for cache in list(self._kept))

    @property
    def kept(self) -> tuple[PromptCache, ...]:
        """What is kept, the last used last."""
        return tuple(self._kept)

    def keep(self, cache: PromptCache) -> None:
        """Take over the cache of a text that is settled."""
        if not cache.tokens or cache.nbytes > self.limit:
            return
        earliest = cache.layers[0].earliest
        self._kept = [
            other
            for other in self._kept
            if len(other.tokens) < earliest or not _begins(cache.tokens, other.tokens)
        ]
        self._kept.append(cache)
        while self.nbytes > self.limit:
            del self._kept[0]

    def known(self, prompt: Sequence[int], live: Iterable[PromptCache] = ()) -> int:
        """How many tokens ``lend`` would have of a prompt."""
        count = max((_usable(cache, prompt) for cache in (*self._kept, *live)), default=0)
        return count if count >= WORTH else 0

    def lend(self, prompt: Sequence[int], live: Iterable[PromptCache] = ()) -> PromptCache | None:
        """A cache of as much of the prompt's beginning as is known; None: of too little.

        Args:
            live: caches of texts under way, settled for the moment.
        """
        kept = [(_usable(cache, prompt), cache) for cache in (*self._kept, *live)]
        count, best = max(kept, key=lambda pair: pair[0], default=(0, None))
        if best is None or count < WORTH:
            return None
        if best in self._kept:
            self._kept.remove(best)
            if count == len(best.tokens):
                return best  # continued, as a conversation is: no need for a copy
            self._kept.append(best)
        return best.fork(count)

    def clear(self) -> None:
        """Forget all."""
        self._kept = []


def _usable(cache: PromptCache, prompt: Sequence[int]) -> int:
    """Tokens of a prompt that need not be computed; its last one always has to be."""
    count = min(shared_tokens(cache.tokens, prompt), len(prompt) - 1)
    return count if count >= cache.layers[0].earliest else 0


def _begins(text: Sequence[int], beginning: Sequence[int]) -> bool:
    return list(text[: len(beginning)]) == list(beginning)
