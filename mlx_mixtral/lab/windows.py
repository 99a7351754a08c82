"""How a text is cut for a model to predict it: what it sees, and which tokens count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LLAMA_CHUNK = 512
"""What llama-perplexity cuts a text into unless told otherwise."""


@dataclass(frozen=True)
class Window:
    """A run of tokens that the model sees at once.

    Attributes:
        ids: the tokens, ``<s>`` first.
        first: the tokens from here to the end count, each predicted from all before it.
    """

    ids: tuple[int, ...]
    first: int

    @property
    def count(self) -> int:
        """Tokens that count."""
        return len(self.ids) - self.first

    @property
    def targets(self) -> tuple[int, ...]:
        return self.ids[self.first :]


def sliding(text: Sequence[int], bos: int, length: int, stride: int) -> list[Window]:
    """Overlapping windows in which every token of ``text`` counts exactly once.

    Each window is ``<s>`` and the next ``length - 1`` tokens, ``stride`` tokens further on than
    the last one, and counts what no window before it did. So a token is predicted from ``<s>``
    and at least ``length - 1 - stride`` tokens before it, the first window's excepted.
    """
    windows, counted, start = [], 0, 0
    while counted < len(text):
        seen = text[start : start + length - 1]
        windows.append(Window((bos, *seen), 1 + counted - start))
        counted = start + len(seen)
        start += stride
    return windows


def llama_chunks(text: Sequence[int], bos: int, length: int = LLAMA_CHUNK) -> list[Window]:
    """The chunks of llama.cpp's perplexity tool, for figures that compare with its own.

    The text after its ``<s>`` is cut into whole chunks, and the rest left out. The first token
    of each is replaced by ``<s>``; those after the middle count: 255 of 512. Less than two
    chunks are no measurement there: none are given.
    Source: llama.cpp, tools/perplexity/perplexity.cpp, ``perplexity()``.
    """
    stream = (bos, *text)
    starts = range(0, len(stream) - length + 1, length)
    if len(starts) < 2:
        return []
    return [Window((bos, *stream[i + 1 : i + length]), length // 2 + 1) for i in starts]
