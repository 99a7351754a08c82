"""Drafts of what an answer may say next, looked up in what was said before. No tensors.

Prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): where
the last tokens stood earlier, what followed them there is likely to follow again. A draft is
only a proposal: one pass of the model tells which of its tokens the model itself would have
chosen, and the rest is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Tokens that are looked for together: shorter ones stand in many places, and drafts of what
# followed them cost more than they gave.
GRAM = 3
# A run is counted up to here where it is looked up; where it is followed it may grow longer.
LOOK_BACK = 16
# Tokens that have to repeat before anything is drafted, at first and after many misses.
EAGER, WARY = GRAM, 48
# Tokens of a draft. With the token before them they are 16: from there on, eight experts with
# two a token are multiplied sorted, each of them read once for all tokens that chose it.
LONGEST_DRAFT = 15


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


class Speculator:
    """Decides how much to draft, by how long the text has repeated itself and by what came of it.

    Where nothing repeats, nothing is drafted and nothing is lost. A draft is half as long
    as the run that speaks for it, so it grows by half while all goes well. After a miss a
    longer run is asked for, until drafts come true again.

    Attributes:
        proposed: tokens drafted so far.
        accepted: those of them that the model chose too.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self.proposed = self.accepted = 0
        self._prompt: Sequence[int] = prompt
        self._lookup = Lookup()
        self._needed = EAGER

    def extend(self, tokens: Iterable[int]) -> None:
        """The answer goes on. The prompt is looked through at the first call only."""
        self._lookup.extend(self._prompt)
        self._prompt = ()
        self._lookup.extend(tokens)

    def draft(self, skip: int, most: int) -> list[int]:
        """Up to ``most`` tokens that may come after the next ``skip``, which are not known yet."""
        run = self._lookup.run
        if run < self._needed:
            return []
        return self._lookup.continuation(skip, min(run // 2, most, LONGEST_DRAFT))

    def judge(self, proposed: int, accepted: int) -> None:
        """Take note of what came of a draft."""
        self.proposed += proposed
        self.accepted += accepted
        if accepted == proposed:
            self._needed = max(EAGER, self._needed // 2)
        elif 2 * accepted < proposed:
            self._needed = min(WARY, 2 * self._needed)
