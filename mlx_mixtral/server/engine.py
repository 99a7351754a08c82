"""One model, one thread that computes with it, and the answers of many."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_mixtral.generation import kv as kept
from mlx_mixtral.generation.kv import KVSettings
from mlx_mixtral.generation.kv_file import activations
from mlx_mixtral.generation.prefill import prefill
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler
from mlx_mixtral.generation.text import AnswerText, longest_answer
from mlx_mixtral.server.jobs import Busy, Done, EngineStatus, Job, Piece, TokenInfo
from mlx_mixtral.server.tickets import Ticket

if TYPE_CHECKING:
    from mlx_mixtral.loading import LanguageModel


class Engine:
    """Answers jobs with a loaded model; ``submit`` and ``status`` from any thread."""

    def __init__(
        self,
        lm: LanguageModel,
        *,
        kv: KVSettings | None = None,
        running: int = 8,
        waiting: int = 64,
        kv_bytes: int | None = None,
        prefix_bytes: int = 0,
    ) -> None:
        """
        Args:
            kv: how keys and values are kept.
            running: jobs that are computed together at most.
            waiting: further jobs at most; more are refused.
            kv_bytes: that the keys and values of running jobs may take; None: one
                context's worth.
            prefix_bytes: of keys and values kept of jobs that are over, for prompts that
                begin alike.
        """
        self._lm, self._kv = lm, kv or KVSettings()
        self._limits = running, waiting
        whole = kept.kv_bytes(
            lm.config, lm.config.max_position_embeddings, self._kv, activations(lm)
        )
        self._kv_limit, self._prefix_limit = kv_bytes or whole, prefix_bytes
        self._wake = threading.Condition()
        self._queue: deque[tuple[Job, Ticket, float]] = deque()
        self._current: Ticket | None = None
        self._cancelled: set[Ticket] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._finished: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def stop(self, drain: bool) -> None:
        """Take no more jobs, and return when all are over: finished if ``drain``, else cancelled.

        A second call with ``drain=False``, from another thread, ends a drain.
        """
        with self._wake:
            self._stopping = True
            if not drain:
                self._cancelled |= {ticket for _, ticket, _ in self._queue}
                self._cancelled |= {self._current} if self._current else set()
            self._wake.notify()
        self._thread.join()

    def submit(self, job: Job) -> Ticket:
        """Have a job done.

        Raises:
            Busy: too many are waiting, or the engine is stopping.
            ContextError: the prompt fills the context, or the job could never have the memory.
            UsageError: an empty prompt, or an id outside the vocabulary.
        """
        longest_answer(self._lm.config, job.prompt, job.sampling)
        ticket = Ticket(self._cancel)
        with self._wake:
            if self._stopping or not self._thread.is_alive():
                raise Busy("the server is stopping", None)
            if len(self._queue) >= self._limits[1]:
                self._counts["refused"] += 1
                raise Busy("too many requests are waiting; try again later", 1.0)
            self._queue.append((job, ticket, time.perf_counter()))
            self._wake.notify()
        return ticket

    async def embed(self, prompts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """The mean of the last hidden states of each prompt [n, D], float32.

        Raises as ``submit`` does, and RuntimeError where computing failed.
        """
        raise NotImplementedError

    def status(self) -> EngineStatus:
        """What the engine does now."""
        with self._wake:
            return EngineStatus(
                alive=self._thread.is_alive(),
                accepting=self._thread.is_alive() and not self._stopping,
                restarts=0,
                running=int(self._current is not None),
                running_limit=self._limits[0],
                waiting=len(self._queue),
                waiting_limit=self._limits[1],
                kv_bytes=0,
                kv_limit=self._kv_limit,
                prefix_bytes=0,
                prefix_limit=self._prefix_limit,
                prompt_tokens=self._counts["prompt"],
                cached_tokens=self._counts["cached"],
                completion_tokens=self._counts["completion"],
                finished=dict(self._finished),
                refused=self._counts["refused"],
                passes=self._counts["passes"],
                longest_pass_s=0.0,
            )

    def _cancel(self, ticket: Ticket) -> None:
        with self._wake:
            if ticket is self._current or any(ticket is t for _, t, _ in self._queue):
                self._cancelled.add(ticket)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._queue:
                    if self._stopping:
                        return
                    self._wake.wait()
                job, ticket, since = self._queue.popleft()
                self._current = ticket
            try:
                done = self._answer(job, ticket, since)
            except Exception as error:
                done = Done("error", f"{type(error).__name__}: {error}")
            with self._wake:
                self._current = None
                self._cancelled.discard(ticket)
                self._finished[done.reason] += 1
            ticket.put(done)

    def _answer(self, job: Job, ticket: Ticket, since: float) -> Done:
        lm, prompt = self._lm, list(job.prompt)
        cache = PromptCache(lm.config, self._kv)
        sampler = Sampler(job.sampling, prompt)
        said = AnswerText(
            lm.tokenizer, job.sampling, longest_answer(lm.config, prompt, job.sampling)
        )
        waited, first = time.perf_counter() - since, 0.0
        logits = prefill(lm.model, cache, prompt, lambda: ticket in self._cancelled)
        while logits is not None and ticket not in self._cancelled:
            token, logprob = sampler(logits, _allowed(job, lm.config.vocab_size))
            info = TokenInfo(token.tolist()[0], logprob.tolist()[0], _top(logits, job))  # type: ignore[index, arg-type]
            first = first or time.perf_counter() - since
            text = said.push(info.id)
            ended = info.id in lm.tokenizer.stop_ids
            if job.grammar and not ended:
                job.grammar.accept(info.id)
                if job.grammar.done and not said.reason:
                    text, said.reason = text + said.flush(), "stop"
            ticket.put(Piece(text, () if ended else (info,)))
            self._counts["completion"] += not ended
            if said.reason:
                break
            logits = lm.model(token[None], cache.layers)[0]
        spent = time.perf_counter() - since - first
        return Done(
            said.reason or "cancelled",
            prompt_tokens=len(prompt),
            completion_tokens=said.tokens,
            waited_s=waited,
            first_s=first,
            tokens_per_second=(said.tokens - 1) / spent if said.tokens > 1 else 0.0,
            seed=sampler.seed,
        )


def _allowed(job: Job, vocab: int) -> mx.array | None:
    mask = job.grammar.mask() if job.grammar else None
    if mask is None:
        return None
    words, ids = mx.array(mask), mx.arange(vocab, dtype=mx.uint32)
    return ((words[ids // 32] >> (ids % 32)) & 1).astype(mx.bool_)


def _top(logits: mx.array, job: Job) -> tuple[tuple[int, float], ...]:
    if not job.top_logprobs:
        return ()
    logprobs = logits[0] - mx.logsumexp(logits[0])
    ids = mx.argsort(-logprobs)[: job.top_logprobs]
    return tuple(zip(ids.tolist(), logprobs[ids].tolist(), strict=True))  # type: ignore[arg-type]
