"""Experts of which a layer keeps only some in memory; the others are read when they are chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_mixtral.experts.files import Files
from mlx_mixtral.experts.filling import Target
from mlx_mixtral.experts.policy import Counters, Fading, Slots
from mlx_mixtral.experts.resident import ResidentExperts

AHEAD_UP_TO = 4
"""Tokens of a pass for which it pays to tell what the next layer needs; more need all of it."""
COUNTED = 16
"""Tokens of a prompt, from its end, that tell what is worth keeping; earlier ones have faded."""

Router = Callable[[mx.array], mx.array]
Array = np.ndarray


@dataclass
class Stream:
    """What the layers of a model share.

    Attributes:
        pending: the last answers given, which may not be computed yet.
    """

    files: Files
    counters: Counters
    pending: list[mx.array] = field(default_factory=list)


class StreamedExperts:
    """The experts of a layer behind the usual seam, in fewer slots than there are experts.

    It is no ``nn.Module``: its arrays are no weights that anybody else should load, convert or
    count. The memory of a slot is written to directly. That is safe because a pass through the
    model goes layer by layer, and each begins by waiting for its router, and with it for all that
    was computed before: nothing that reads a slot is under way when it is overwritten.

    Args:
        router: this layer's, for what it thinks of experts that it does not choose.
        slots: the experts' arithmetic, over stacked arrays of as many experts as there are slots.
        experts: how many there are in all.
        targets: the arrays of ``slots``, and how experts come into them.

    Attributes:
        next: the layer after this one, its router, and how many of its experts are to be read
            ahead; None: nothing is.
    """

    def __init__(
        self,
        router: Router,
        slots: ResidentExperts,
        experts: int,
        targets: Sequence[Target],
        stream: Stream,
    ) -> None:
        self._router, self._answer = router, slots
        self.targets, self._stream = targets, stream
        self._slots, self._policy = Slots(targets[0].array.shape[0]), Fading(experts)
        self._slot_of = np.zeros(experts, np.uint32)  # as in ``_slots``, for whole arrays
        self._reads: dict[int, list[Future[None]]] = {}  # not waited for yet, by expert
        self._foretold: set[int] = set()  # read ahead, and not asked for yet
        self._counters = stream.counters
        self.next: tuple[StreamedExperts, Router, int] | None = None

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """x [T, D], indices [T, K] -> [T, K, D]

        Raises:
            ModelError: an expert cannot be read, or a file has changed.
        """
        try:
            return self._answers(x, indices)
        except BaseException:
            # Cut short anywhere, it is not known what lies in the slots.
            self._forget()
            if self.next:
                self.next[0]._forget()
            raise

    @property
    def expert_bytes(self) -> int:
        """Of one expert in memory."""
        return sum(target.array.nbytes for target in self.targets) // self._slots.count

    def _answers(self, x: mx.array, indices: mx.array) -> mx.array:
        self._counters.rows += len(x)
        chosen, odds, foreseen = self._read_back(x, indices)
        for token, thought in zip(chosen[-COUNTED:].tolist(), odds.tolist(), strict=True):
            self._policy.used(token, thought)
        needed = self._needed(chosen)
        if len(needed) <= self._slots.count:
            self._start(needed, needed)
            self._wait(needed)
            if self.next:
                self.next[0]._ahead(foreseen)
            answers = self._answer(x, mx.array(self._slot_of[chosen]))
        else:
            answers = self._by_group(x, chosen, needed)
        self._stream.pending = [answers]
        return answers

    def _read_back(self, x: mx.array, indices: mx.array) -> tuple[Array, Array, list[int]]:
        """On the host: the chosen experts [T, K], what the router thought of all experts for the
        last tokens [<= T, E], and those that the next layer may choose."""
        pending, self._stream.pending = self._stream.pending, []
        x = x[-COUNTED:].astype(mx.float32)
        odds = mx.softmax(self._router(x), axis=-1)
        if self.next is None or len(indices) > AHEAD_UP_TO:
            mx.eval(indices, odds, *pending)
            return np.array(indices), np.array(odds), []
        _, router, most = self.next
        likely = mx.argsort(-router(x), axis=-1)[:, :most]
        mx.eval(indices, odds, likely, *pending)
        return np.array(indices), np.array(odds), np.unique(np.array(likely)).tolist()

    def _needed(self, chosen: Array) -> list[int]:
        """Each expert once, those in memory first, so that none is read twice."""
        here, experts = self._slots.slot_of, set(np.unique(chosen).tolist())
        hits, counters = [e for e in experts if e in here], self._counters
        counters.asked += len(experts)
        counters.hits += len(hits)
        counters.ahead += len(self._foretold & experts)
        self._foretold -= experts
        return hits + [e for e in experts if e not in here]

    def _by_group(self, x: mx.array, chosen: Array, needed: list[int]) -> mx.array:
        """More experts than slots: some after the others, while those that follow are read.

        Each row is multiplied as if all were there, and what the experts of a token answer is
        mixed elsewhere and at once, so the numbers are the same.
        """
        size = max(1, self._slots.count // 2)
        both = 2 * size <= self._slots.count  # there is room for a group and the next one
        groups = [needed[n : n + size] for n in range(0, len(needed), size)]
        rows, order = chosen.flatten(), []
        answers: list[mx.array] = []
        self._start(groups[0], groups[0])
        for group, following in zip(groups, [*groups[1:], []], strict=True):
            self._wait(group)
            if both:
                mx.eval(answers[-1:])  # the slots of the group before this one are free then
                self._start(following, group + following)
            mine = np.flatnonzero(np.isin(rows, group))
            tokens, slots = mine // chosen.shape[1], self._slot_of[rows[mine]]
            answers.append(
                self._answer.among(x[mx.array(tokens)], mx.array(slots[:, None]), rows.size)
            )
            order.append(mine)
            mx.async_eval(answers[-1])
            if not both:
                mx.eval(answers[-1])
                self._start(following, following)
        back = mx.array(np.argsort(np.concatenate(order)))
        return mx.unflatten(mx.concatenate(answers)[back, 0], 0, chosen.shape)

    def _ahead(self, experts: list[int]) -> None:
        """Begin to read experts that are likely to be asked for next."""
        experts = experts[: self._slots.count]
        missing = [e for e in experts if e not in self._slots.slot_of]
        self._foretold.update(missing)
        self._start(missing, experts)

    def _start(self, experts: Sequence[int], keep: Sequence[int]) -> None:
        """Begin to read those that are not in memory, in place of others but for ``keep``."""
        for expert in experts:
            if expert in self._slots.slot_of:
                continue
            if (victim := self._slots.victim(self._policy, keep)) is not None:
                self._drop(victim)
            slot = self._slots.place(expert)
            self._slot_of[expert] = slot
            tasks = [target.task(expert, slot) for target in self.targets]
            self._reads[expert] = self._stream.files.start(tasks)
            self._counters.reads += 1

    def _wait(self, experts: Sequence[int]) -> None:
        """Until all of them are in memory. Raises ModelError."""
        awaited = [future for e in experts for future in self._reads.get(e, [])]
        if not awaited:
            return
        start = time.perf_counter()
        for future in awaited:
            future.result()
        self._stream.files.check()
        self._counters.waiting += time.perf_counter() - start
        for expert in experts:
            self._reads.pop(expert, None)

    def _drop(self, expert: int) -> None:
        wait(self._reads.pop(expert, []))
        self._slots.drop(expert)
        if expert in self._foretold:
            self._foretold.remove(expert)
            self._counters.wasted += 1

    def _forget(self) -> None:
        """Nothing is in memory any more."""
        for futures in self._reads.values():
            wait(futures)
        self._reads, self._foretold, self._slots = {}, set(), Slots(self._slots.count)
