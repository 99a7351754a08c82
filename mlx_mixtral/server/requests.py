"""A job under way: what was told of it so far, and how it ends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter

import numpy as np

from mlx_mixtral.generation.batch import Mask, Text, Told
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler
from mlx_mixtral.generation.speculative import Speculator
from mlx_mixtral.generation.text import AnswerText
from mlx_mixtral.server.jobs import Done, Job, Piece, TokenInfo
from mlx_mixtral.server.tickets import Ticket
from mlx_mixtral.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class Request:
    """A job, or a prompt to be embedded, from its arrival to its end.

    Attributes:
        job: None to embed the prompt.
        most: tokens that the answer may have.
        need: bytes that its keys and values may come to.
        ticket: where it is told of.
        text: what is read and answered, once it runs.
        after: another one with a prompt that begins alike, and that is read first.
        embedding: mean of the hidden states [D], where that was asked for.
        over: its ``Done`` was told.
        drafted: tokens that were drafted; ``accepted`` of them came true.
    """

    def __init__(self, prompt: tuple[int, ...], job: Job | None, most: int, need: int) -> None:
        self.prompt, self.job, self.most, self.need = prompt, job, most, need
        self.ticket = Ticket()
        self.over = False
        self.text: Text | None = None
        self.after: Request | None = None
        self.embedding: np.ndarray | None = None
        self.cached = self.drafted = self.accepted = 0
        self._said: AnswerText | None = None
        self._held = Held(job) if job and job.grammar else None
        self._arrived = perf_counter()
        self._began = self._first = self._last = 0.0

    @property
    def unread(self) -> int:
        """Tokens of the prompt to be read now."""
        if self.text is None or self.after:
            return 0
        return max(0, len(self.prompt) - self.text.read)

    @property
    def answering(self) -> bool:
        """Its prompt is read and its answer is not over."""
        return self.job is not None and self.text is not None and not self.unread

    @property
    def more(self) -> bool:
        """There may be a token after the one that is being chosen."""
        return self._said is not None and self._said.tokens + 1 < self.most

    @property
    def failure(self) -> str | None:
        """Why it cannot go on, though the others can."""
        return self._held.failure if self._held else None

    @property
    def reason(self) -> str | None:
        """Why the answer is over, if it is."""
        return self._said.reason if self._said else None

    def begin(self, cache: PromptCache, tokenizer: Tokenizer, speculates: bool) -> Text:
        """Continue what the cache holds of the prompt.

        Args:
            speculates: what repeats an earlier text is drafted, unless the job forbids it.
        """
        self._began, self.cached = perf_counter(), len(cache.tokens)
        if self.job is None:
            self.text = Text(cache, self.prompt, None)
            return self.text
        self._said = AnswerText(tokenizer, self.job.sampling, self.most)
        self.text = Text(
            cache,
            self.prompt,
            Sampler(self.job.sampling, self.prompt),
            top=self.job.top_logprobs or 0,
            constraint=self._held,
            routing=self.job.routing,
            speculator=self._speculator(self.job) if speculates else None,
        )
        return self.text

    def draft(self, most: int) -> list[int]:
        """Tokens that the answer may go on with, ``most`` at most; no pass may be under way."""
        if self.text is None or self._said is None:
            return []
        return self.text.draft(min(most, self.most - self._said.tokens - 1))

    def take(self, told: Sequence[Told]) -> int:
        """The tokens chosen next; how many of them are of the answer, and not its end or after it.

        Raises:
            ValueError: the request did not begin.
        """
        if self.text is None or self._said is None:
            raise ValueError("the request did not begin")
        self._last = perf_counter()
        self._first = self._first or self._last
        self.drafted += self.text.drafted
        self.accepted += len(told) - 1
        self.text.take([one.token for one in told])
        before = self._said.tokens
        for one in told:
            self._say(one, self._said)
            if self._said.reason:
                break
        return self._said.tokens - before

    def _say(self, told: Told, said: AnswerText) -> None:
        before = said.tokens
        text = said.push(told.token)
        if self._held and not said.reason and self._held.accept(told.token):
            said.reason = "stop"
            text += said.flush()
        counts = said.tokens > before
        if text or counts:
            self.ticket.put(Piece(text, (TokenInfo(*told),) if counts else ()))

    def end(self, reason: str, message: str = "") -> None:
        """Tell that it is over, if that was not told yet."""
        if self.over:
            return
        self.over = True
        if self._held:
            self._held.close()
        tokens = self._said.tokens if self._said else 0
        spent = self._last - self._first
        self.ticket.put(
            Done(
                reason,
                message,
                prompt_tokens=len(self.prompt),
                cached_tokens=self.cached,
                completion_tokens=tokens,
                drafted_tokens=self.drafted,
                accepted_tokens=self.accepted,
                waited_s=(self._began or perf_counter()) - self._arrived,
                first_s=self._first - self._arrived if self._first else 0.0,
                tokens_per_second=(tokens - 1) / spent if spent and tokens > 1 else 0.0,
                seed=self.text.sampler.seed if self.text and self.text.sampler else 0,
            )
        )
        self.text = None

    def _speculator(self, job: Job) -> Speculator | None:
        # What a grammar forces is known already, and what else it allows is not.
        if self._held or not job.sampling.speculate:
            return None
        return Speculator(self.prompt, prediction=job.prediction)


class Held:
    """A job's grammar as a ``Constraint``. Its failures end the job alone: it came from outside.

    Attributes:
        failure: what went wrong; nothing is asked of the grammar any more then.
    """

    def __init__(self, job: Job) -> None:
        self.failure: str | None = None
        self._grammar, self._ahead = job.grammar, job.sampling.speculate

    def close(self) -> None:
        """The job is over, though a pass with it may be under way."""
        self._grammar = None

    def forced(self) -> Sequence[int]:
        """Tokens that have to come next; none where the job forbids to go ahead."""
        if not self._grammar or not self._ahead:
            return ()
        try:
            return self._grammar.forced()
        except Exception as error:
            self._fail(error)
            return ()

    def mask(self, after: Sequence[int]) -> Mask:
        """Which tokens may come after some of those."""
        if not self._grammar:
            return None
        try:
            mask = self._grammar.mask(after)
            if mask is not None and not mask.any():
                raise ValueError("the grammar allows no token")
        except Exception as error:
            self._fail(error)
            return None
        return mask

    def accept(self, token: int) -> bool:
        """A token came; whether it was the last one."""
        if not self._grammar:
            return False
        try:
            self._grammar.accept(token)
            return self._grammar.done
        except Exception as error:
            self._fail(error)
            return False

    def _fail(self, error: Exception) -> None:
        log.warning("a grammar failed: %s", one_line(error))
        self.failure = f"the schema cannot be kept to here ({one_line(error)})"
        self._grammar = None


def one_line(error: BaseException) -> str:
    """What an exception says, in a line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
