"""How a text is cut for a model to predict it: what it sees, and which tokens count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

LLAMA_CHUNK = 512
"""What llama-perplexity cuts a text into unless told otherwise."""
PACK = 1024
"""Tokens that are computed together."""


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


@dataclass(frozen=True)
class Pack:
    """Windows that are computed together, one after the other in one run of tokens.

    They attend to themselves alone; but of many short ones the experts' weights are read once.
    """

    windows: tuple[Window, ...]

    @property
    def ids(self) -> list[int]:
        return [token for window in self.windows for token in window.ids]

    @property
    def count(self) -> int:
        """Tokens that count."""
        return sum(window.count for window in self.windows)

    @property
    def targets(self) -> list[int]:
        return [token for window in self.windows for token in window.targets]

    @property
    def places(self) -> list[slice]:
        """Where each window lies."""
        ends = [*accumulate(len(window.ids) for window in self.windows)]
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    @property
    def rows(self) -> list[int]:
        """Where each target is predicted: one before it."""
        pairs = zip(self.windows, self.places, strict=True)
        return [
            row for window, at in pairs for row in range(at.stop)[at.start + window.first - 1 : -1]
        ]


def packs(windows: Sequence[Window], most: int = PACK) -> list[Pack]:
    """The windows in order, in packs of at most so many tokens, or of a longer window alone."""
    found: list[list[Window]] = []
    room = 0
    for window in windows:
        if len(window.ids) > room:
            found.append([])
            room = most
        found[-1].append(window)
        room -= len(window.ids)
    return [Pack(tuple(some)) for some in found]
