"""One model, one thread that computes with it, and the answers of many."""

from __future__ import annotations

import atexit
import logging
import math
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_mixtral.errors import ContextError, MixtralError
from mlx_mixtral.generation import kv as kept
from mlx_mixtral.generation.batch import Pass, Take, Text
from mlx_mixtral.generation.kv import KVSettings
from mlx_mixtral.generation.kv_file import Owner, activations
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler, Sampling
from mlx_mixtral.generation.text import longest_answer
from mlx_mixtral.server.jobs import Busy, Done, EngineStatus, Job
from mlx_mixtral.server.prefix_folder import PrefixFolder
from mlx_mixtral.server.prefixes import Prefixes
from mlx_mixtral.server.requests import Request, one_line
from mlx_mixtral.server.schedule import Schedule, Stride
from mlx_mixtral.server.tickets import Ticket
from mlx_mixtral.server.worker import Worker

if TYPE_CHECKING:
    from mlx_mixtral.loading import LanguageModel

log = logging.getLogger(__name__)

OPEN_ENDED = 4096
"""Tokens that memory is set aside for where a job names no limit, and its share is less."""
LONGEST_WAIT = 60.0
"""Seconds that a client is asked to wait at most before it tries again."""


class Engine:
    """Answers jobs with a loaded model, many at once.

    All passes of the model run in one thread. If a pass fails, the jobs in it end with an
    error and the others go on; if the thread itself fails, it is started anew.

    A job's tokens do not depend on what else runs, but for rounding: MLX adds up the sums of a
    product in another order for many rows than for few, so that logits differ in their last
    bits, and two tokens that agree to those may change places; so may two experts. With packed
    keys (``kv_bits``) a last bit may decide how a key is rounded, which is more. The same jobs
    in passes of the same rows give the same bits. Random numbers are each job's own. What an
    answer repeats is drafted (``Sampling.speculate``) while few jobs run, and no prompt is read.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        kv: KVSettings | None = None,
        running: int = 8,
        waiting: int = 256,
        kv_bytes: int | None = None,
        prefix_bytes: int = 0,
        prefix_folder: Path | None = None,
        stall_s: float = 0.25,
        calm_s: float = 1.0,
    ) -> None:
        """
        Args:
            kv: how keys and values are kept.
            running: jobs that are computed together at most.
            waiting: further jobs at most; more are refused.
            kv_bytes: that the keys and values of running jobs may come to; None: one context's
                worth. A job that names no ``max_tokens`` gets an equal share of them.
            prefix_bytes: of keys and values kept of jobs that are over, for prompts that begin
                alike.
            prefix_folder: where they are kept from a run that ends (drained) to the next one.
            stall_s: seconds that answers may stand still because prompts are read; as far as
                reading a few tokens does not take longer.
            calm_s: the same while no answer is given: so long a new job may wait.
        """
        self._lm, self._kv = lm, kv or KVSettings()
        self._waiting_limit = waiting
        limit = kv_bytes or self._bytes_of(lm.config.max_position_embeddings)
        self._schedule: Schedule[Request] = Schedule(running, limit)
        self._prefixes = Prefixes(prefix_bytes)
        self._folder = (
            PrefixFolder(prefix_folder, lm.config, self._kv, Owner.of(lm))
            if prefix_folder
            else None
        )
        stride = Stride(stall_s, calm_s)
        self._worker = Worker(lm, self._kv, self._schedule, self._prefixes, stride)
        self._wake = threading.Condition()
        self._inbox: deque[Request] = deque()
        self._accepting = self._hurry = False
        self._refused = self._restarts = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- from any thread

    def start(self) -> None:
        """Begin to take jobs; returns once the first can be computed without delay.

        Raises:
            MixtralError: the model cannot compute.
        """
        # A process that ends while the thread computes would crash.
        atexit.register(self.stop, drain=False)
        self._thread.start()
        self._ready.wait()
        if not self._accepting:
            self.stop(drain=False)
            raise MixtralError("the model cannot compute anything here; the log says why")

    def stop(self, drain: bool) -> None:
        """Take no more jobs, and return when all are over: finished if ``drain``, else cancelled.

        A second call with ``drain=False``, from another thread, ends a drain.
        """
        with self._wake:
            self._accepting = False
            self._hurry = self._hurry or not drain
            self._wake.notify()
        while self._thread.is_alive():
            self._thread.join()
        atexit.unregister(self.stop)

    def submit(self, job: Job) -> Ticket:
        """Have a job done.

        Raises:
            Busy: too many are waiting, or the engine is stopping.
            ContextError: the prompt fills the context, or there is never memory for the job.
            UsageError: an empty prompt, or an id outside the vocabulary.
        """
        most = self._longest(job.prompt, job.sampling)
        return self._accept([Request(job.prompt, job, most, self._need(job.prompt, most))])[0]

    async def embed(self, prompts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """The mean of the last hidden states of each prompt [n, D], float32.

        Raises as ``submit`` does, and MixtralError where computing failed.
        """
        for prompt in prompts:
            longest_answer(self._lm.config, prompt, Sampling())
        requests = [Request(prompt, None, 0, self._need(prompt, 0)) for prompt in prompts]
        at_once = self._schedule.running_limit
        try:
            for n in range(0, len(requests), at_once):
                for ticket in self._accept(requests[n : n + at_once]):
                    async for event in ticket:
                        if isinstance(event, Done) and event.reason != "stop":
                            raise MixtralError(event.message or "the server is stopping")
        finally:
            for request in requests:
                request.ticket.cancel()
        found = [request.embedding for request in requests if request.embedding is not None]
        return np.reshape(found, (len(found), self._lm.config.hidden_size)).astype(np.float32)

    def status(self) -> EngineStatus:
        """What the engine does now."""
        worker, schedule = self._worker, self._schedule
        return EngineStatus(
            alive=self._thread.is_alive(),
            accepting=self._accepting,
            restarts=self._restarts,
            running=len(schedule.running),
            running_limit=schedule.running_limit,
            waiting=len(self._inbox) + len(schedule.waiting),
            waiting_limit=self._waiting_limit,
            kv_bytes=schedule.used,
            kv_limit=schedule.byte_limit,
            prefix_bytes=self._prefixes.nbytes,
            prefix_limit=self._prefixes.limit,
            prompt_tokens=worker.counts["prompt"],
            cached_tokens=worker.counts["cached"],
            completion_tokens=worker.counts["completion"],
            drafted_tokens=worker.counts["drafted"],
            accepted_tokens=worker.counts["accepted"],
            finished=dict(worker.finished),
            refused=self._refused,
            passes=worker.counts["passes"],
            longest_pass_s=worker.longest,
        )

    # --- what a job may take

    def _bytes_of(self, tokens: int) -> int:
        return kept.kv_bytes(self._lm.config, tokens, self._kv, activations(self._lm))

    def _longest(self, prompt: tuple[int, ...], sampling: Sampling) -> int:
        """Tokens that the answer may have."""
        longest = longest_answer(self._lm.config, prompt, sampling)
        if sampling.max_tokens:
            return longest
        limit = self._schedule.byte_limit
        open_ended = self._bytes_of(len(prompt) + min(longest, OPEN_ENDED))
        share = min(limit, max(limit // self._schedule.running_limit, open_ended))
        lengths = range(len(prompt) + 1, len(prompt) + longest + 1)
        return max(1, bisect_right(lengths, share, key=self._bytes_of))

    def _need(self, prompt: tuple[int, ...], most: int) -> int:
        need, limit = self._bytes_of(len(prompt) + most), self._schedule.byte_limit
        if need > limit:
            raise ContextError(
                f"{len(prompt)} tokens of prompt and {most} of the answer need {need / 1e6:.0f} MB "
                f"of keys and values, and {limit / 1e6:.0f} MB are set aside; ask for fewer"
            )
        return need

    def _accept(self, requests: list[Request]) -> list[Ticket]:
        with self._wake:
            if not self._accepting:
                raise Busy("the server is stopping", None)
            schedule = self._schedule
            here = len(self._inbox) + len(schedule.waiting) + len(schedule.running)
            if here + len(requests) > schedule.running_limit + self._waiting_limit:
                self._refused += 1
                raise Busy("too many requests are waiting; try again later", self._retry_after())
            self._inbox.extend(requests)
            self._wake.notify()
        return [request.ticket for request in requests]

    def _retry_after(self) -> float:
        """Seconds until a place is likely to be free: as long as one took to become free lately."""
        ends = list(self._worker.ends)
        if not ends:
            return 5.0
        return float(min(LONGEST_WAIT, math.ceil((perf_counter() - ends[0]) / len(ends))))

    # --- the engine's own thread

    def _run(self) -> None:
        try:
            if not self._ready.is_set():
                self._warm_up()
                for cache in self._folder.read() if self._folder else ():
                    self._prefixes.keep(cache)
                self._accepting = True
                self._ready.set()
            self._serve()
            if self._folder and not self._hurry:
                self._folder.write(self._prefixes.kept)
        except BaseException as error:
            log.critical("the engine's thread failed", exc_info=error)
            if self._ready.is_set():
                self._start_anew(error)
            self._ready.set()
        finally:
            mx.clear_streams()  # they are the thread's own

    def _warm_up(self) -> None:
        """What only the first pass takes time for: kernels are compiled, libraries imported."""
        sampler = Sampler(Sampling(temperature=1.0), [])
        cache = PromptCache(self._lm.config, self._kv)
        Pass(self._lm.model, [Take(Text(cache, [self._lm.tokenizer.bos_id], sampler), 1)]).told()

    def _serve(self) -> None:
        busy = True  # there may be what another thread left
        while True:
            with self._wake:
                while not (busy or self._inbox):
                    if not self._accepting:
                        return
                    self._wake.wait()
                self._schedule.waiting.extend(self._inbox)
                self._inbox.clear()
            if self._hurry:
                for request in (*self._schedule.waiting, *self._schedule.running):
                    request.ticket.cancel()
            try:
                busy = self._worker.step()
            except Exception as error:
                log.error("a pass failed", exc_info=error)
                self._worker.fail(one_line(error))

    def _start_anew(self, error: BaseException) -> None:
        """Another thread takes over; what ran is lost, what waits is not."""
        self._restarts += 1
        try:
            self._worker.fail(one_line(error))
        finally:
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()
