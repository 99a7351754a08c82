"""Who is computed next. Bookkeeping alone: no tensors, no threads, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

LEAST_CHUNK = 32
"""Rows of prompts that a pass has room for, however slow the model is."""
UNMEASURED = 64
"""And as long as nobody knows how slow it is."""
MEMORY = 0.7
"""How much of what was measured before a new measurement leaves standing."""


class Work(Protocol):
    """A job as the schedule sees it."""

    @property
    def need(self) -> int:
        """Bytes that it may come to."""

    @property
    def unread(self) -> int:
        """Tokens of its prompt to be read now; 0 too while it waits for another's."""


W = TypeVar("W", bound=Work)


class Schedule(Generic[W]):
    """First come, first served, as memory allows.

    A job runs only when all that it may come to fits beside all that the running ones may come
    to, so that none has ever to be thrown out. A large one at the head of the queue holds up
    small ones behind it, or it might wait for ever.

    Attributes:
        waiting: those that did not begin, the oldest first.
        running: those that did, the oldest first.
    """

    def __init__(self, running_limit: int, byte_limit: int) -> None:
        self.running_limit, self.byte_limit = running_limit, byte_limit
        self.waiting: deque[W] = deque()
        self.running: list[W] = []

    @property
    def used(self) -> int:
        """Bytes that the running jobs may come to."""
        return sum(work.need for work in list(self.running))

    @property
    def ready(self) -> bool:
        """The next job can begin."""
        if not self.waiting or len(self.running) >= self.running_limit:
            return False
        return self.used + self.waiting[0].need <= self.byte_limit

    def admit(self) -> Iterator[W]:
        """Jobs that begin now, each at once among the running."""
        while self.ready:
            work = self.waiting.popleft()
            self.running.append(work)
            yield work

    def remove(self, work: W) -> None:
        """A job is over, wherever it stands."""
        for place in (self.waiting, self.running):
            if work in place:
                place.remove(work)

    def prompts(self, rows: int) -> dict[W, int]:
        """How many tokens of which prompts the next pass reads, ``rows`` together at most.

        Half of them are for the prompt that came first, so that it gets through; the rest for
        the shortest, so that a short prompt does not wait for a long one.
        """
        reading = [work for work in self.running if work.unread]
        shares: dict[W, int] = {}
        for work in reading[:1]:
            shares[work] = min(work.unread, -(-rows // 2))
        for work in sorted(reading, key=lambda work: work.unread):
            left = rows - sum(shares.values())
            have = shares.get(work, 0)
            if more := min(work.unread - have, left):
                shares[work] = have + more
        return shares


class Stride:
    """How many rows of prompts go into a pass, so that it does not take too long.

    Attributes:
        stall: seconds that a pass may take while answers are given, which stand still meanwhile.
        calm: while none are: so long a job may have to wait that comes just then.
    """

    def __init__(self, stall: float, calm: float) -> None:
        self.stall, self.calm = stall, calm
        self._per_row: float | None = None

    def rows(self, answering: bool, most: int) -> int:
        """At most so many now; ``most`` is what memory allows."""
        if self._per_row is None:
            return min(UNMEASURED, most)
        fit = int((self.stall if answering else self.calm) / self._per_row)
        return min(max(LEAST_CHUNK, fit), most)

    def note(self, rows: int, seconds: float) -> None:
        """A pass over ``rows`` rows took so long."""
        if rows >= LEAST_CHUNK:  # few rows take as long as one
            now = seconds / rows
            self._per_row = (
                now if self._per_row is None else (MEMORY * self._per_row + (1 - MEMORY) * now)
            )
