"""Drafts of what an answer may say next, looked up in what was said before. No tensors.

Prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): where
the last tokens stood earlier, what followed them there is likely to follow again.
"""

from __future__ import annotations

from collections.abc import Iterable

# Tokens that are looked for together: shorter ones stand in many places, and drafts of what
# followed them cost more than they gave.
GRAM = 3
# A run is counted up to here where it is looked up; where it is followed it may grow longer.
LOOK_BACK = 16


class Lookup:
    """A growing text, and the earlier place that its end repeats.

    Attributes:
        tokens: the text.
        at: the place in ``tokens`` of what followed there; None where nothing is repeated.
        run: how many tokens before ``at`` equal the text's last ones.

    A place is followed for as long as it foretells the text. Then the latest one is taken
    where the last ``GRAM`` tokens stood.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.at: int | None = None
        self.run = 0
        self._after: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Iterable[int]) -> None:
        """The text goes on; the same few steps for each token, however long it is."""
        for token in tokens:
            foretold = self.at is not None and self.tokens[self.at] == token
            self.tokens.append(token)
            found = self._find_and_note()
            if self.at is not None and foretold:
                self.at, self.run = self.at + 1, self.run + 1
            else:
                self.at = found
                self.run = self._length(found) if found is not None else 0

    def continuation(self, skip: int, count: int) -> list[int]:
        """The ``count`` tokens after the next ``skip`` ones, if the text repeats itself on."""
        if self.at is None:
            return []
        # A place so near that the draft runs into the text's end: the text goes in a circle.
        period = len(self.tokens) - self.at
        return [self.tokens[self.at + n % period] for n in range(skip, skip + count)]

    def _find_and_note(self) -> int | None:
        """What followed the last tokens where they stood before; the next time it is here."""
        gram = tuple(self.tokens[-GRAM:])
        found, self._after[gram] = self._after.get(gram), len(self.tokens)
        return found

    def _length(self, at: int) -> int:
        tokens, length = self.tokens, 0
        while length < min(at, LOOK_BACK) and tokens[at - 1 - length] == tokens[-1 - length]:
            length += 1
        return length
