"""The way of an answer from the engine's thread to whoever waits for it in an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from threading import Lock

from mlx_mixtral.server.jobs import Done, Event


class Ticket:
    """The events of one job: pieces, then one ``Done``, which is the last.

    >>> async for event in engine.submit(job): ...

    Attributes:
        cancelled: ``cancel`` was called.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self._lock = Lock()
        self._events: deque[Event] = deque()
        self._over = False
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def cancel(self) -> None:
        """Nobody wants the answer any more: within a step it is over. From any thread.

        A ``Done`` comes all the same.
        """
        self.cancelled = True

    def put(self, event: Event) -> None:
        """For the engine: one more event."""
        with self._lock:
            self._events.append(event)
            waiter, self._waiter = self._waiter, None
        if waiter:
            loop, arrived = waiter
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(arrived.set)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._over:
            raise StopAsyncIteration
        while (event := self._take()) is None:
            arrived = asyncio.Event()
            with self._lock:
                if self._events:
                    continue
                self._waiter = asyncio.get_running_loop(), arrived
            await arrived.wait()
        self._over = isinstance(event, Done)
        return event

    def _take(self) -> Event | None:
        with self._lock:
            return self._events.popleft() if self._events else None
