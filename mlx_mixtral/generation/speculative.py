"""Speculation: tokens are proposed, and one pass of the model tells which of them are right.

A proposal costs nothing where the text repeats itself and can be looked up; elsewhere a
smaller model may make it. Whatever is proposed, the model's own choices are what is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mlx.core as mx

from mlx_mixtral.generation.draft import DraftModel
from mlx_mixtral.generation.lookup import GRAM, Lookup
from mlx_mixtral.generation.sampling import Sampler

# Tokens that have to repeat before anything is drafted, at first and after many misses.
EAGER, WARY = GRAM, 48
# Tokens of a draft that was looked up. With the token before them they are 32, enough for eight
# experts with two a token to be multiplied sorted, each read once for all that chose it.
LONGEST_DRAFT = 31


class Speculator:
    """Decides who drafts, and how much.

    What repeats an earlier text is looked up. Where nothing repeats, nothing is drafted and
    nothing is lost, but for what a draft model proposes. A draft that was looked up is one
    token at first, and twice as long and one more after each that comes true. After one of
    which nothing was right a longer run is asked for, until drafts come true again.

    Attributes:
        proposed: tokens drafted so far.
        accepted: those of them that the model chose too.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        model: DraftModel | None = None,
        prediction: Sequence[int] = (),
    ) -> None:
        """
        Args:
            prediction: what the answer is expected to say, to be looked up like what stands in
                the prompt. After the prompt's last tokens, which it is put behind here, its
                first ones are drafted at once. Not with a model, which reads what is looked up.
        """
        self.proposed = self.accepted = 0
        if prediction:
            prompt = [*prompt[-GRAM:], *prediction, *prompt]
        self._prompt: Sequence[int] = prompt
        self._end = len(prompt)  # what is quoted from it does not go on behind it
        self._lookup = Lookup()
        self._needed = EAGER
        self._model = model
        self._asked = False  # the last draft was the model's
        self._behind = 0
        if model:
            model.begin(prompt)

    def extend(self, tokens: Iterable[int]) -> None:
        """The answer goes on. The prompt is looked through at the first call only."""
        self._lookup.extend(self._prompt)
        self._prompt = ()
        self._lookup.extend(tokens)

    def draft(self, last: mx.array, known: bool, most: int, sampler: Sampler) -> mx.array | None:
        """Tokens [n] that may come next, ``most`` at most; None: nothing is worth a try.

        Args:
            last: the last token [1] of the text.
            known: whether ``extend`` was told of it.
            sampler: in the state in which it will choose the first of them.
        """
        self._asked = False
        found = self.looked_up(0 if known else 1, most)
        if found:
            return mx.array(found, mx.uint32)
        # Its first reading, of the prompt, does not hold up the first token.
        if self._model and not self._prompt:
            return self._from_model(self._model, last, known, most, sampler)
        return None

    def looked_up(self, skip: int, most: int) -> list[int]:
        """Up to ``most`` tokens that may come after the next ``skip``, which are not known yet."""
        at, run = self._lookup.at, self._lookup.run
        if at is None or run < self._needed:
            return []
        if at < self._end:
            most = min(most, self._end - at - skip)
        return self._lookup.continuation(skip, min(run - GRAM + 1, most, LONGEST_DRAFT))

    def judge(self, proposed: int, accepted: int, seconds: float) -> None:
        """Take note of what came of a draft, and how long it took to make and to verify."""
        self.proposed += proposed
        self.accepted += accepted
        if self._asked and self._model:
            self._model.keep(accepted)
            self._model.pace.note(proposed, accepted, seconds, self._behind)
        elif accepted == proposed:
            self._needed = max(EAGER, self._needed // 2)
        elif not accepted:
            self._needed = min(WARY, 2 * self._needed)

    def stepped(self, seconds: float) -> None:
        """Take note of how long a step without a draft took."""
        if self._model and not self._prompt:  # the first one is part of the prompt's pass
            self._model.pace.note(0, 0, seconds)

    def settle(self, sequence: Sequence[int]) -> None:
        """The answer is over; the conversation is ``sequence`` now."""
        if self._model:
            self._model.settle(sequence)

    def reset(self) -> None:
        """It was cut short by an error."""
        if self._model:
            self._model.reset()

    def _from_model(
        self, model: DraftModel, last: mx.array, known: bool, most: int, sampler: Sampler
    ) -> mx.array | None:
        text = self._lookup.tokens
        length = len(text) - known
        self._behind = model.behind(length)
        count = model.pace.length(min(most, model.room(length)), self._behind)
        if not count:
            return None
        self._asked = True
        return model.propose(text, length, last, count, sampler)


def foretold(draft: Sequence[int], chosen: Sequence[int]) -> int:
    """How many tokens of a draft were then ``chosen`` one after another, from its first on.

    A pass over a token t and a draft a, b, c chooses what comes after t, after t a, after
    t a b and after t a b c. If that is a, b, x, y, then a, b and x are right, since before
    each of them stood what was really chosen; y, after a wrong c, is not.
    """
    count = 0
    while count < len(draft) and chosen[count] == draft[count]:
        count += 1
    return count
