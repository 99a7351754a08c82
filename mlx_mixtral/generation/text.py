"""Text in, text out: ``generate`` whole, ``stream`` piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlx_mixtral.errors import ContextError, UsageError
from mlx_mixtral.experts.policy import Counters, Streamed
from mlx_mixtral.generation.draft import DraftModel
from mlx_mixtral.generation.kv import KVSettings
from mlx_mixtral.generation.loop import generate_tokens
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler, Sampling
from mlx_mixtral.generation.speculative import Speculator
from mlx_mixtral.generation.stops import StopStrings

if TYPE_CHECKING:
    from mlx_mixtral.config import ModelConfig
    from mlx_mixtral.loading import LanguageModel
    from mlx_mixtral.streaming import Streaming
    from mlx_mixtral.tokenizer import Tokenizer


@dataclass(frozen=True)
class Stats:
    """What an answer took.

    Attributes:
        prompt_tokens: tokens of the prompt, ``cached_tokens`` of them known before.
        completion_tokens: tokens of the answer, without the one that ended it.
        ttft_s: seconds until the first token.
        prompt_tps: new tokens of the prompt a second.
        generation_tps: tokens a second after the first one; 0 for fewer than two.
        peak_memory_bytes: the most memory that MLX's arrays took, weights included.
        seed: repeats the answer.
        drafted_tokens: tokens that were proposed because an earlier text went on with them, or
            by a draft model; ``accepted_tokens`` of them were what the model chose.
        streamed: how reading experts from disk went after the prompt; None where all of them
            are in memory.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ttft_s: float
    prompt_tps: float
    generation_tps: float
    peak_memory_bytes: int
    seed: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    streamed: Streamed | None = None


@dataclass(frozen=True)
class Piece:
    """One token's worth of an answer.

    Attributes:
        text: empty while a character is incomplete or a stop string possible.
        token: its id; None when the answer was interrupted before its first token.
        logprob: natural logarithm of its probability under the model, before sampling.
        finish_reason: None but at the end: "stop" (end token or stop string), "length"
            (max_tokens or the context reached), "interrupted".
        stats: None but at the end.
    """

    text: str
    token: int | None
    logprob: float
    finish_reason: str | None = None
    stats: Stats | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer; prints as its text. ``tokens`` are without the end token."""

    text: str
    tokens: list[int]
    finish_reason: str
    stats: Stats

    def __str__(self) -> str:
        return self.text


def generate(
    lm: LanguageModel,
    prompt: str | Sequence[int],
    *,
    kv_bits: int | None = None,
    kv_window: int | None = None,
    draft: LanguageModel | None = None,
    **sampling: Any,
) -> Completion:
    """The answer to a prompt.

    Args:
        lm: from ``load``.
        prompt: text to continue as it is (no chat template), or token ids, such as
            ``lm.template.encode(messages)``.
        kv_bits, kv_window: the fields of ``KVSettings``: less memory for a long context.
        draft: a smaller model with the same vocabulary, which proposes tokens; the answer
            is the same and may come sooner (see ``generation/draft.py``).
        sampling: fields of ``Sampling``, such as ``max_tokens=100, temperature=0.7``.

    Raises:
        UsageError: an empty prompt, an id outside the vocabulary, a bad setting, or a draft
            with another vocabulary.
        ContextError: the prompt fills the model's context.
    """
    kv = {"kv_bits": kv_bits, "kv_window": kv_window}
    return collect(lm, stream(lm, prompt, **kv, draft=draft, **sampling))


def stream(
    lm: LanguageModel,
    prompt: str | Sequence[int],
    *,
    kv_bits: int | None = None,
    kv_window: int | None = None,
    draft: LanguageModel | None = None,
    **sampling: Any,
) -> Iterator[Piece]:
    """As ``generate``, one piece a token. Errors are raised at once, not at the first piece."""
    ids = lm.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) and prompt else prompt
    settings, drafter = Sampling.of(**sampling), DraftModel(lm, draft) if draft else None
    cache = PromptCache(lm.config, KVSettings(kv_bits, kv_window))
    return answer(lm, list(ids), settings, cache, draft=drafter)  # type: ignore[arg-type]


def collect(lm: LanguageModel, pieces: Iterator[Piece]) -> Completion:
    """The completion that pieces make up."""
    said = list(pieces)
    last = said[-1]
    if last.finish_reason is None or last.stats is None:
        raise ValueError("the stream was cut before its last piece")
    tokens = [p.token for p in said if p.token is not None]
    if last.finish_reason == "stop" and tokens[-1] in lm.tokenizer.stop_ids:
        tokens.pop()
    return Completion("".join(p.text for p in said), tokens, last.finish_reason, last.stats)


def answer(
    lm: LanguageModel,
    prompt: list[int],
    settings: Sampling,
    cache: PromptCache,
    interrupted: Callable[[], bool] = lambda: False,
    draft: DraftModel | None = None,
) -> Iterator[Piece]:
    """Check a prompt, then stream its answer, reusing and extending ``cache``.

    Args:
        interrupted: asked at every step; true makes the present piece the last.
        draft: proposes tokens, unless ``settings`` forbid speculation.
    """
    most = longest_answer(lm.config, prompt, settings)
    return _answer(lm, prompt, settings, most, cache, interrupted, draft)


def longest_answer(config: ModelConfig, prompt: Sequence[int], settings: Sampling) -> int:
    """Tokens that the answer may have.

    Raises:
        UsageError: an empty prompt, or an id outside the vocabulary.
        ContextError: the prompt fills the model's context.
    """
    limit, vocab = config.max_position_embeddings, config.vocab_size
    if not prompt:
        raise UsageError("the prompt is empty; give some text")
    if bad := [i for i in (*prompt, *settings.logit_bias) if not 0 <= i < vocab]:
        raise UsageError(f"token id {bad[0]} is outside the vocabulary of {vocab}")
    if len(prompt) >= limit:
        raise ContextError(
            # Programs look for these words to tell this error from others.
            f"context length exceeded: the prompt has {len(prompt)} tokens, and this model's "
            f"maximum context length is {limit} tokens, the answer included; shorten it"
        )
    room = limit - len(prompt)
    return min(settings.max_tokens or room, room)


class AnswerText:
    """The text of an answer, token by token, and what ends it.

    Attributes:
        tokens: how many it has, without an end token.
        reason: why it is over: "stop" (end token or stop text), "length" (``most`` tokens).
    """

    def __init__(self, tokenizer: Tokenizer, settings: Sampling, most: int) -> None:
        self.tokens = 0
        self.reason: str | None = None
        self._most, self._ends = most, tokenizer.stop_ids
        self._detokenizer, self._stops = tokenizer.detokenizer(), StopStrings(settings.stop)

    def push(self, token: int) -> str:
        """One more token; the text that is certain now, which is all once the answer is over."""
        if token in self._ends:
            self.reason = "stop"
            return self.flush()
        self.tokens += 1
        text = self._stops.push(self._detokenizer.push(token))
        if self._stops.stopped:
            self.reason = "stop"
        elif self.tokens == self._most:
            self.reason = "length"
        return text + self.flush() if self.reason else text

    def flush(self) -> str:
        """No more tokens come: what was held back."""
        return self._stops.push(self._detokenizer.flush()) + self._stops.flush()


def _answer(
    lm: LanguageModel,
    prompt: list[int],
    settings: Sampling,
    most: int,
    cache: PromptCache,
    interrupted: Callable[[], bool],
    draft: DraftModel | None,
) -> Iterator[Piece]:
    cached = cache.reuse(prompt)
    sampler = Sampler(settings, prompt)
    # Looking up what repeats was measured not to pay where experts are read for each pass
    # (examples/streaming/speed.py); a draft model measures by itself whether it does.
    pays = draft is not None or lm.streaming is None
    speculator = Speculator(prompt, draft) if settings.speculate and pays else None
    clock = _Clock(len(prompt), cached, sampler.seed, lm.streaming)
    said = AnswerText(lm.tokenizer, settings, most)
    steps = generate_tokens(lm.model, cache, prompt, sampler, most, interrupted, speculator)
    try:
        for step in steps:
            clock.tick()
            text, reason = said.push(step.token), said.reason
            if not reason and interrupted():
                text, reason = text + said.flush(), "interrupted"
            if reason:
                stats = clock.stats(said.tokens, speculator)
                yield Piece(text, step.token, step.logprob, reason, stats)
                return
            yield Piece(text, step.token, step.logprob)
    finally:
        steps.close()  # type: ignore[attr-defined]
    yield Piece("", None, 0.0, "interrupted", clock.stats(0))


class _Clock:
    """Times the first step and those after it."""

    def __init__(
        self, prompt_tokens: int, cached_tokens: int, seed: int, streaming: Streaming | None
    ) -> None:
        self.prompt_tokens, self.cached_tokens, self.seed = prompt_tokens, cached_tokens, seed
        self._streaming = streaming
        self._before = Counters()
        self.steps = 0
        mx.reset_peak_memory()
        self._start = self._first = self._last = time.perf_counter()

    def tick(self) -> None:
        self._last = time.perf_counter()
        if not self.steps:
            self._first = self._last
            if self._streaming:
                self._before = self._streaming.stream.counters.copy()
        self.steps += 1

    def stats(self, completion_tokens: int, speculator: Speculator | None = None) -> Stats:
        prefill, decode = self._first - self._start, self._last - self._first
        new = self.prompt_tokens - self.cached_tokens
        return Stats(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=completion_tokens,
            ttft_s=prefill,
            prompt_tps=new / prefill if prefill else 0.0,
            generation_tps=(self.steps - 1) / decode if decode else 0.0,
            peak_memory_bytes=mx.get_peak_memory(),
            seed=self.seed,
            drafted_tokens=speculator.proposed if speculator else 0,
            accepted_tokens=speculator.accepted if speculator else 0,
            streamed=self._streamed(),
        )

    def _streamed(self) -> Streamed | None:
        if self._streaming is None:
            return None
        counted = self._streaming.stream.counters.since(self._before)
        return counted.told(len(self._streaming.slots))
