"""What the engine's thread does: pass after pass for all jobs that run. It knows no threads."""

from __future__ import annotations

from collections import Counter, deque
from time import perf_counter
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_mixtral.generation.batch import Pass, Take, Text
from mlx_mixtral.generation.kv import KVSettings
from mlx_mixtral.generation.prefill import chunk_after
from mlx_mixtral.generation.prompt_cache import PromptCache, shared_tokens
from mlx_mixtral.generation.speculative import LONGEST_DRAFT
from mlx_mixtral.server.prefixes import Prefixes
from mlx_mixtral.server.requests import Request
from mlx_mixtral.server.schedule import Schedule, Stride

if TYPE_CHECKING:
    from mlx_mixtral.loading import LanguageModel

WORTH_WAITING = 64
"""Tokens that a prompt waits for while another one, which begins alike, is read."""


class Worker:
    """Runs jobs; all calls from one thread.

    Attributes:
        schedule: the jobs. ``prefixes``: what is kept of those that are over.
        finished: how many are over, by reason.
        counts: tokens ("prompt", "cached", "completion", "drafted", "accepted") and "passes".
        longest: seconds that answers stood still at most.
        ends: when the last jobs were over (``perf_counter``).
    """

    def __init__(
        self,
        lm: LanguageModel,
        kv: KVSettings,
        schedule: Schedule[Request],
        prefixes: Prefixes,
        stride: Stride,
    ) -> None:
        self._lm, self._kv = lm, kv
        self.schedule, self.prefixes, self._stride = schedule, prefixes, stride
        self.finished: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.longest = 0.0
        self._now: Pass | None = None
        self._requests: dict[Text, Request] = {}
        self.ends: deque[float] = deque(maxlen=16)
        self._reading: tuple[int, float] | None = None  # rows of such a pass, and its beginning
        self._told: float | None = None  # when an answer went on the last time

    def step(self) -> bool:
        """Begin a pass, and tell of the one before; False when there is nothing to do."""
        self._sweep()
        if self._now and self._may_overlap():
            # The device computes the next pass while the host tells of this one.
            following = self._begin(self._following(), self._now)
            self._tell()
            self._now = following
        else:
            self._tell()
            self._admit()
            self._now = self._begin(self._planned(), None)
        if self._now:
            self._now.choose_late()
        return bool(self.schedule.running or self.schedule.waiting)

    def fail(self, message: str) -> None:
        """End all that runs: what their caches hold is not known any more."""
        self._now = self._reading = self._told = None
        for request in list(self.schedule.running):
            self._end(request, "error", message, keep=False)
        # A cache may have been kept before what it holds was computed.
        self.prefixes.clear()
        mx.clear_cache()

    # --- who

    def _sweep(self) -> None:
        """End what nobody wants any more, and what cannot go on."""
        for request in (*self.schedule.waiting, *self.schedule.running):
            if request.failure:
                self._end(request, "grammar", request.failure)
            elif request.ticket.cancelled:
                self._end(request, "cancelled")

    def _admit(self) -> None:
        for request in self.schedule.running:
            if request.after and (request.after.over or not request.after.unread):
                request.after = None
                self._start(request)
        for request in self.schedule.admit():
            self._start(request)

    def _start(self, request: Request) -> None:
        """Have a request begin with what is known of its prompt, or wait for more of that."""
        cache = None
        if request.job:  # an embedding needs the hidden states of all tokens
            live = self._settled()
            known = self.prefixes.known(request.prompt, live)
            for other in self.schedule.running:
                shared = shared_tokens(request.prompt, other.prompt) if other.unread else 0
                if shared >= known + WORTH_WAITING:
                    request.after = other
                    return
            cache = self.prefixes.lend(request.prompt, live)
        cache = cache or PromptCache(self._lm.config, self._kv)
        # Where experts are read for each pass, looking up does not pay (``generation/text.py``).
        text = request.begin(cache, self._lm.tokenizer, speculates=self._lm.streaming is None)
        self._requests[text] = request
        self.counts["cached"] += request.cached

    def _settled(self) -> list[PromptCache]:
        """The caches of all that runs, aware of what they hold; no pass may be under way."""
        for text in self._requests:
            text.cache.settle(text.tokens)
        return [text.cache for text in self._requests]

    def _end(self, request: Request, reason: str, message: str = "", keep: bool = True) -> None:
        self.schedule.remove(request)
        if text := request.text:
            self._requests.pop(text, None)
            if keep and request.job:
                text.cache.settle(text.tokens)
                self.prefixes.keep(text.cache)
            mx.clear_cache()
        self.finished[reason] += 1
        self.counts["drafted"] += request.drafted
        self.counts["accepted"] += request.accepted
        self.ends.append(perf_counter())
        request.end(reason, message)

    # --- what

    def _may_overlap(self) -> bool:
        """All that runs is being answered, nothing new can begin, and nothing is drafted."""
        running = self.schedule.running
        if self.schedule.ready or not all(r.answering for r in running):
            return False
        return not any(r.text and (r.text.drafted or r.draft(1)) for r in running)

    def _following(self) -> list[Take]:
        """The tokens that the present pass chooses, where they are not the last."""
        return [Take(r.text, 1) for r in self.schedule.running if r.text and r.more]

    def _planned(self) -> list[Take]:
        """A token of each answer, and as much of the prompts as does not take too long."""
        running = self.schedule.running
        reading = [r.text.read for r in running if r.text and r.unread]
        answers = self._answers(drafted=not reading)
        if not reading:
            return answers
        most = chunk_after(self._lm.config, max(reading))
        shares = self.schedule.prompts(self._stride.rows(bool(answers), most))
        read = sum(shares.values())
        self.counts["prompt"] += read
        self._reading = len(answers) + read, perf_counter()
        return answers + [Take(r.text, count) for r, count in shares.items() if r.text]

    def _answers(self, drafted: bool) -> list[Take]:
        """A token of each answer, and drafts of them while a pass has few rows."""
        answering = [r for r in self.schedule.running if r.answering]
        left = 1 + LONGEST_DRAFT - len(answering) if drafted else 0
        takes = []
        for request in answering:
            if request.text:
                takes.append(Take(request.text, 1, request.draft(max(0, left))))
                left -= len(takes[-1].draft)
        return takes

    def _begin(self, takes: list[Take], before: Pass | None) -> Pass | None:
        if not takes:
            return None
        self.counts["passes"] += 1
        return Pass(self._lm.model, takes, before)

    def _tell(self) -> None:
        """Wait for the present pass, and tell everybody what came of it."""
        if not self._now:
            return
        told = self._now.told()
        self._now, now = None, perf_counter()
        if self._reading:
            rows, began = self._reading
            self._reading = None
            self._stride.note(rows, now - began)
            mx.clear_cache()  # the next one has another number of rows
        self.longest = max(self.longest, now - (self._told or now))
        for text, what in told:
            request = self._requests.get(text)
            if request:  # it may have ended meanwhile
                self.counts["completion"] += request.take(what)
                if request.reason:
                    self._end(request, request.reason)
        for request in list(self.schedule.running):
            if request.job is None and request.text and not request.unread:
                self._embedded(request, request.text)
        self._told = now if any(r.answering for r in self.schedule.running) else None

    def _embedded(self, request: Request, text: Text) -> None:
        if text.pooled is not None:
            mx.eval(text.pooled)  # unlike a conversion, that lets other threads run meanwhile
            request.embedding = np.array(text.pooled / len(request.prompt))
        self._end(request, "stop")
