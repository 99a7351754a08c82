"""How the next token is chosen."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_mixtral.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """Settings of one answer.

    Attributes:
        max_tokens: the longest answer; None: until the context is full.
        temperature: 0 takes the likeliest token always; 1 samples the model's distribution.
        top_p: sample from the likeliest tokens that together have this probability; 1: off.
        top_k: sample from the k likeliest tokens; 0: off.
        min_p: drop tokens less likely than this share of the likeliest one's; 0: off.
        repetition_penalty: divides positive (multiplies negative) logits of the last
            ``repetition_window`` tokens (Keskar et al. 2019, arXiv:1909.05858); 1: off.
        repetition_window: how many tokens back, prompt included, the penalty looks.
        frequency_penalty: taken off a token's logit for each time that it stands in the answer
            already; ``presence_penalty``: once, if it does (both as in OpenAI's API); 0: off.
        logit_bias: added to the logit of each token id.
        seed: the same seed, settings and prompt give the same answer; None: a new one
            each time, reported with the answer.
        stop: texts that end the answer; they are not part of it.
        speculate: draft what repeats an earlier text and verify it in one pass of the model
            (``generation/speculative.py``). It chooses the same tokens sooner, sampled ones
            too, but for two whose probabilities differ by less than a rounding error.

    The order is mlx-lm's: bias, penalties, top-p, min-p, top-k, then temperature.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    speculate: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is None and name in ("max_tokens", "seed"):
                continue
            number = isinstance(value, int if name in WHOLE else int | float)
            if not number or isinstance(value, bool) or not low <= value <= high:
                kind = "an integer" if name in WHOLE else "a number"
                reach = f"from {low:g} to {high:g}" if high < math.inf else f"from {low:g}"
                raise UsageError(f"{name} has to be {kind} {reach}, not {value!r}")
        if not isinstance(self.speculate, bool):
            raise UsageError(f"speculate has to be True or False, not {self.speculate!r}")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise UsageError(f"stop takes texts of at least one character, not {self.stop!r}")
        for token, bias in self.logit_bias.items():
            if not isinstance(token, int) or token < 0 or not math.isfinite(bias):
                raise UsageError(f"logit_bias maps token ids to numbers, not {token!r} to {bias!r}")

    @classmethod
    def of(cls, **settings: Any) -> Sampling:
        """From keywords; UsageError for one that does not exist."""
        known = [f.name for f in fields(cls)]
        for name in settings:
            if name not in known:
                raise UsageError(f"unknown setting {name!r}; there are {', '.join(known)}")
        return cls(**settings)


WHOLE = ("max_tokens", "top_k", "repetition_window", "seed")
RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (1, math.inf),
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (0, math.inf),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "repetition_window": (1, math.inf),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "seed": (0, 2**63 - 1),
}


# Random numbers of so many places are seeded at once.
BLOCK = 256


class Sampler:
    """Chooses tokens one after another; never waits for the device.

    It carries its own random keys, one a place: what else runs in the process does not change
    its choices, and neither does how many places are computed together.
    """

    def __init__(self, settings: Sampling, prompt: Sequence[int]) -> None:
        from mlx_mixtral.generation import borrowed

        self.settings = settings
        self.seed = secrets.randbits(31) if settings.seed is None else settings.seed
        self._keys = mx.random.key(self.seed)[None]  # of the places, and of those beyond
        self._place = 0
        self._filters = borrowed
        penalty = settings.repetition_penalty
        self._processors = borrowed.make_logits_processors(
            logit_bias=dict(settings.logit_bias),
            repetition_penalty=None if penalty == 1 else penalty,
            repetition_context_size=settings.repetition_window,
        )
        self._counts: mx.array | None = None  # [V], of the answer's tokens, if they count
        self._counted = bool(settings.frequency_penalty or settings.presence_penalty)
        self._looks_back = self._counted or bool(self._processors)
        self._states: list[tuple[int, mx.array, mx.array | None]] = []
        self._recent = mx.array(list(prompt)[-settings.repetition_window :], mx.int32)

    def __call__(
        self, logits: mx.array, allowed: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Logits [1, V] -> the token [1] and its log-probability [1] under the model itself.

        Args:
            allowed: [V], which tokens may be chosen; None: all.
        """
        logits = logits.astype(mx.float32)
        token = self.choose(logits, allowed)
        return token, log_probabilities(logits, token)

    def choose(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array:
        """As a call, from logits [1, V] in float32, the token [1] alone."""
        token = self._choose(logits, self._noise_for_one, allowed)
        if self._processors:
            recent = mx.concatenate([self._recent, token.astype(mx.int32)])
            self._recent = recent[-self.settings.repetition_window :]
        if self._counted:
            counts = mx.zeros(logits.shape[-1]) if self._counts is None else self._counts
            self._counts = counts.at[token].add(1)
        return token

    @property
    def greedy(self) -> bool:
        """The likeliest token is its choice, always."""
        return self.settings.temperature == 0 and not self._looks_back

    def successive(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        """Logits [n, V] of n places that follow each other -> tokens [n], log-probabilities [n].

        Each is chosen as by a call of its own, after those before it: with its own random
        number, and penalized for what was chosen before. ``keep`` then says how many counted.
        """
        logits = logits.astype(mx.float32)
        tokens = self.choose_successive(logits)
        return tokens, log_probabilities(logits, tokens)

    def choose_successive(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array:
        """As ``successive``, from logits [n, V] in float32, the tokens [n] alone.

        Args:
            allowed: [n, V], which tokens may be chosen at each place; None: all.
        """
        count, first = logits.shape[0], self._place
        if not self._looks_back:
            # Nothing but the random numbers differs from one place to the next.
            tokens = self._choose(logits, self._noise, allowed)
            self._states = [(first + n, self._recent, None) for n in range(1, count + 1)]
            return tokens
        chosen = []
        for n in range(count):
            mask = None if allowed is None else allowed[n]
            chosen.append(self.choose(logits[n : n + 1], mask))
            self._states.append((self._place, self._recent, self._counts))
        return mx.concatenate(chosen)

    def fork(self) -> Sampler:
        """Another one that will draw the same random numbers; neither disturbs the other."""
        twin = copy(self)
        twin._states = []
        return twin

    def keep(self, count: int) -> None:
        """Go on after the first ``count`` (one or more) of the choices of ``successive``."""
        self._place, self._recent, self._counts = self._states[count - 1]
        self._states = []

    def _choose(
        self,
        logits: mx.array,
        noise: Callable[[tuple[int, ...]], mx.array],
        allowed: mx.array | None = None,
    ) -> mx.array:
        s = self.settings
        for process in self._processors:
            # A copy, since mlx-lm's penalty writes into the array that it is given.
            logits = process(self._recent, mx.array(logits))
        if self._counts is not None:
            logits = logits - s.frequency_penalty * self._counts
            logits = logits - s.presence_penalty * (self._counts > 0)
        if allowed is not None:
            logits = mx.where(allowed, logits, -mx.inf)
        if s.temperature == 0:
            return mx.argmax(logits, axis=-1)
        if 0 < s.top_p < 1:
            logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            logits = self._filters.apply_top_p(logits, s.top_p)
        if s.min_p > 0:
            logits = self._filters.apply_min_p(logits, s.min_p)
        if 0 < s.top_k < logits.shape[-1]:
            logits = self._filters.apply_top_k(logits, s.top_k)
        # The largest after Gumbel noise was added is a sample of the softmax.
        return mx.argmax(logits / s.temperature + noise(logits.shape), axis=-1)

    def _noise_for_one(self, shape: tuple[int, ...]) -> mx.array:
        return mx.random.gumbel(shape, key=self._take_keys(1)[0])

    def _noise(self, shape: tuple[int, ...]) -> mx.array:
        """[n, V], each row as ``_noise_for_one`` would draw it."""
        one = mx.vmap(lambda key: mx.random.gumbel(shape[1:], key=key))
        noise: mx.array = one(self._take_keys(shape[0]))
        return noise

    def _take_keys(self, count: int) -> mx.array:
        """The keys [count, 2] of the next places."""
        first, self._place = self._place, self._place + count
        while self._place >= len(self._keys):
            more = mx.random.split(self._keys[-1], BLOCK)
            self._keys = mx.concatenate([self._keys[:-1], more])
        return self._keys[first : self._place]


class Choice(NamedTuple):
    """What a sampler is to choose.

    Attributes:
        rows: of logits, of places that follow each other. If there are several, ``keep`` of the
            sampler has to be called afterwards.
        allowed: [rows, V], which tokens may be chosen; None: all.
    """

    sampler: Sampler
    rows: int = 1
    allowed: mx.array | None = None

    def made(self, logits: mx.array) -> mx.array:
        """From logits [rows, V] in float32, the tokens [rows]."""
        if self.rows > 1:
            return self.sampler.choose_successive(logits, self.allowed)
        return self.sampler.choose(logits, self.allowed)


def choose_each(choices: Sequence[Choice], logits: mx.array) -> mx.array:
    """The rows of each choice, one choice's after the other's [n, V], in float32 -> tokens [n]."""
    if all(c.sampler.greedy and c.rows == 1 and c.allowed is None for c in choices):
        return mx.argmax(logits, axis=-1)
    ends = list(accumulate(choice.rows for choice in choices))
    rows = zip(choices, mx.split(logits, ends[:-1]), strict=True)
    return mx.concatenate([choice.made(row) for choice, row in rows])


def log_probabilities(logits: mx.array, tokens: mx.array) -> mx.array:
    """Logits [n, V], tokens [n] -> their log-probabilities [n]."""
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - mx.logsumexp(logits, axis=-1)
