"""What the engine is asked for and what it answers. No tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mlx_mixtral.errors import MixtralError

if TYPE_CHECKING:
    from mlx_mixtral.generation.sampling import Sampling

MOST_TOP = 20
"""Alternatives to a token that may be asked for."""


class Grammar(Protocol):
    """What an answer has to keep to. Made anew for each job; the engine's thread alone calls it."""

    def forced(self) -> Sequence[int]:
        """Tokens to come next, of which each is the only one allowed after those before it."""

    def mask(self, after: Sequence[int]) -> np.ndarray | None:
        """Which tokens may come after the first few of those that are forced, or now.

        Bit i % 32 of word i // 32 (uint32), end tokens included. None: any of them.
        """

    def accept(self, token: int) -> None:
        """This one came next. Not called for the token that ended the answer."""

    @property
    def done(self) -> bool:
        """Nothing but the end may follow; the answer then ends without a further token."""


@dataclass(frozen=True)
class Job:
    """One answer asked for (n answers to one prompt are n jobs).

    Attributes:
        prompt: token ids.
        sampling: its settings, stop texts and seed among them.
        top_logprobs: that many of the likeliest tokens (0 to 20) are told with each token;
            None: not even the token's own log-probability.
        grammar: what the answer has to keep to.
        prediction: token ids that the answer may go on with, if its settings ``speculate``: what
            of them it repeats comes sooner.
        routing: tell the experts that each layer chose.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    top_logprobs: int | None = None
    grammar: Grammar | None = None
    prediction: tuple[int, ...] = ()
    routing: bool = False


@dataclass(frozen=True)
class TokenInfo:
    """One token of an answer. What ids spell: ``Tokenizer.bytes_of``.

    Attributes:
        id: in the vocabulary.
        logprob: natural logarithm of its probability under the model, before sampling.
        top: (id, log-probability) of the likeliest tokens, the likeliest first.
        experts: of each layer, the experts that were at work when it was chosen, the first one
            weighing most; None where that was not asked for, or there are none.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    experts: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class Piece:
    """More of an answer.

    Attributes:
        text: empty while a character is incomplete or a stop text possible.
        tokens: those that came since the last piece, without the one that ended the answer.
    """

    text: str
    tokens: tuple[TokenInfo, ...]


@dataclass(frozen=True)
class Done:
    """The end of an answer, whatever ended it.

    Attributes:
        reason: "stop" (end token, stop text or grammar), "length" (``max_tokens``, or the
            context is full), "cancelled", "error", "grammar" (it could not be kept to).
        message: of an error: one line.
        prompt_tokens: of which ``cached_tokens`` did not have to be computed.
        completion_tokens: without the one that ended the answer.
        drafted_tokens: that were tried because an earlier text or a prediction went on with
            them; ``accepted_tokens`` of them were what the model chose.
        waited_s: seconds until the engine began with it.
        first_s: seconds until the first token, waiting included; 0 where none came.
        tokens_per_second: after the first one; 0 for fewer than two.
        seed: repeats the answer.
    """

    reason: str
    message: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    waited_s: float = 0.0
    first_s: float = 0.0
    tokens_per_second: float = 0.0
    seed: int = 0


Event = Piece | Done


@dataclass(frozen=True)
class EngineStatus:
    """What the engine does now, and counts of what it did since its start.

    Attributes:
        alive: its thread runs. ``restarts``: how often it had to be started again.
        accepting: it takes jobs: it was started and not told to stop.
        running, waiting: jobs, and the most of each at once.
        kv_bytes: that the running jobs may come to, of ``kv_limit``; ``prefix_bytes`` of
            ``prefix_limit`` are kept of jobs that are over.
        prompt_tokens: computed; ``cached_tokens`` more did not have to be.
        completion_tokens: given out.
        drafted_tokens: tried in jobs that are over; ``accepted_tokens`` of them came true.
        finished: jobs that are over, by reason. ``refused``: turned away because of the queue.
        passes: of the model. ``longest_pass_s``: the longest that answers waited for one.
    """

    alive: bool
    accepting: bool
    restarts: int
    running: int
    running_limit: int
    waiting: int
    waiting_limit: int
    kv_bytes: int
    kv_limit: int
    prefix_bytes: int
    prefix_limit: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    finished: dict[str, int]
    refused: int
    passes: int
    longest_pass_s: float


class Busy(MixtralError):
    """The queue is full, or the engine is stopping.

    Attributes:
        retry_after: seconds after which another try may succeed; None: never, it is stopping.
    """

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
