"""Prefill and decode: token ids in, token ids out. Knows neither text nor files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

import mlx.core as mx

from mlx_mixtral.generation.prefill import prefill
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler
from mlx_mixtral.generation.speculative import Speculator, foretold
from mlx_mixtral.model.transformer import Transformer


class Step(NamedTuple):
    """A generated token, and its log-probability (nats) under the model."""

    token: int
    logprob: float


def generate_tokens(
    model: Transformer,
    cache: PromptCache,
    prompt: Sequence[int],
    sampler: Sampler,
    max_tokens: int,
    interrupted: Callable[[], bool] = lambda: False,
    speculator: Speculator | None = None,
) -> Iterator[Step]:
    """Continue ``prompt`` by up to ``max_tokens`` tokens; the caller stops when it has enough.

    The step after the one yielded is already under way, so the device never waits for the
    caller. However this ends, ``cache`` then holds what was computed.

    Args:
        cache: what of the prompt is already known; ``reuse`` has been called for it.
        interrupted: asked between the chunks of the prompt; true ends without a token.
        speculator: drafts tokens, to be verified several at once; new for each prompt.
    """
    sequence = list(prompt)
    decoding = _Decoding(model, cache, sampler, speculator, max_tokens)
    try:
        logits = prefill(model, cache, sequence, interrupted)
        for step in decoding.steps(logits) if logits is not None else ():
            sequence.append(step.token)
            yield step
    except GeneratorExit:
        _settle(cache, speculator, sequence)
        raise
    except BaseException:
        # It may have come between two layers, so what the caches hold is not known.
        cache.reset()
        if speculator:
            speculator.reset()
        raise
    _settle(cache, speculator, sequence)


def _settle(cache: PromptCache, speculator: Speculator | None, sequence: list[int]) -> None:
    cache.settle(sequence)
    if speculator:
        speculator.settle(sequence)


class _Pass(NamedTuple):
    """A pass of the model under way, over a token and the draft of those after it.

    Attributes:
        tokens: what is chosen after each of them [1 + draft].
        logprobs: their log-probabilities [1 + draft].
        draft: [draft], None in an ordinary step.
    """

    tokens: mx.array
    logprobs: mx.array
    draft: mx.array | None

    def wait(self) -> list[Step]:
        """The chosen tokens that count: as long as the draft foretold them, and one more."""
        tokens: list[int] = self.tokens.tolist()  # type: ignore[assignment]
        logprobs: list[float] = self.logprobs.tolist()  # type: ignore[assignment]
        draft: list[int] = [] if self.draft is None else self.draft.tolist()  # type: ignore[assignment]
        right = foretold(draft, tokens)
        return [Step(*step) for step in zip(tokens, logprobs, strict=True)][: right + 1]


class _Decoding:
    """Step after step; where the text repeats itself, several in one pass (see ``foretold``)."""

    def __init__(
        self,
        model: Transformer,
        cache: PromptCache,
        sampler: Sampler,
        speculator: Speculator | None,
        max_tokens: int,
    ) -> None:
        self._model, self._cache, self._sampler = model, cache, sampler
        self._speculator = speculator
        self._over = 0.0  # when the last pass was
        self._left = max_tokens  # tokens that the passes not yet begun may give

    def steps(self, logits: mx.array) -> Iterator[Step]:
        """From the logits [1, V] after the prompt on. Each pass begins before the last is told."""
        self._over = perf_counter()
        now: _Pass | None = self._begin(logits, None)
        while now:
            if now.draft is not None:
                # Where the draft went wrong, and so what comes next, has to be waited for.
                told = self._verified(now, now.draft.size)
                after = self._next(mx.array([told[-1].token], mx.uint32), known=True)
            elif self._model.waits:
                # Nothing would be under way meanwhile, and the token is known a pass sooner.
                told = now.wait()
                yield from told
                if self._speculator:
                    self._speculator.extend([told[0].token])
                now = self._next(now.tokens, known=True)
                self._stepped(alone=now is not None and now.draft is None)
                continue
            else:
                # It waits for its token on the device, and the host for neither of the two.
                after = self._next(now.tokens, known=False)
                told = now.wait()
                self._stepped(alone=after is not None and after.draft is None)
            yield from told
            if self._speculator and now.draft is None:
                self._speculator.extend([told[0].token])
            now = after

    def _begin(self, logits: mx.array, draft: mx.array | None) -> _Pass:
        self._left -= 1
        chosen = self._sampler(logits) if draft is None else self._sampler.successive(logits)
        mx.async_eval(*chosen)
        return _Pass(*chosen, draft)

    def _next(self, token: mx.array, known: bool) -> _Pass | None:
        """Begin the pass over ``token`` [1], which the speculator was told of or not."""
        if not self._left:
            return None
        draft = self._draft(token, known)
        ids = token if draft is None else mx.concatenate([token, draft])
        return self._begin(self._model(ids[None], self._cache.layers)[0], draft)

    def _draft(self, token: mx.array, known: bool) -> mx.array | None:
        if not self._speculator:
            return None
        # One may come true beyond the draft, and one step be under way when the caller stops.
        most = min(self._left - 1, self._cache.spare() - 2)
        return self._speculator.draft(token, known, most, self._sampler)

    def _verified(self, done: _Pass, proposed: int) -> list[Step]:
        """What came true of a draft; the caches and the sampler then know of no more than that."""
        steps = done.wait()
        accepted = len(steps) - 1
        self._cache.drop(proposed - accepted)
        self._sampler.keep(len(steps))
        self._left -= accepted
        if self._speculator:
            self._speculator.judge(proposed, accepted, self._since_the_last())
            self._speculator.extend([step.token for step in steps])
        return steps

    def _stepped(self, alone: bool) -> None:
        """An ordinary step is over; ``alone``: the host did not prepare a draft meanwhile."""
        seconds = self._since_the_last()
        if self._speculator and alone:
            self._speculator.stepped(seconds)

    def _since_the_last(self) -> float:
        """Seconds since the pass before this one was over."""
        before, self._over = self._over, perf_counter()
        return self._over - before
