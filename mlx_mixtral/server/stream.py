"""Answers that are sent while they are made: server-sent events, or lines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_mixtral.server.asgi import until_gone
from mlx_mixtral.server.record import record_of


class Stream(Response):
    """Sends frames as they come, and now and then a sign of life while none come.

    Long prompts take minutes, and proxies and clients give silent connections up. When the
    client leaves, the frames' iterator is closed at once.
    """

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        pause: float,
        release: Callable[[], None],
        idle: Callable[[], bytes] | None = None,
    ) -> None:
        """
        Args:
            frames: server-sent events, or lines of JSON where ``idle`` is given.
            pause: seconds of silence before a sign of life.
            release: called at the end, even if no frame was ever asked for.
            idle: makes a line that says nothing; of events it is a comment.
        """
        kind = "application/x-ndjson" if idle else "text/event-stream"
        super().__init__(headers={"x-accel-buffering": "no"}, media_type=kind)
        del self.headers["content-length"]
        self._frames, self._pause, self._release = frames, pause, release
        self._idle = idle or (lambda: b": working\n\n")
        self._sent_at = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if await self._sent(receive, send):
                await send({"type": "http.response.body", "body": b""})
            else:
                record_of(scope).gone = True
        finally:
            self._release()

    async def _sent(self, receive: Receive, send: Send) -> bool:
        """Whether all frames went out before the client left."""
        self._sent_at = time.monotonic()
        tasks = [
            asyncio.ensure_future(work)
            for work in (self._send_frames(send), self._send_signs(send), until_gone(receive))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await self._frames.aclose()  # type: ignore[attr-defined]
        for result in results:
            if isinstance(result, Exception):
                raise result
        return not isinstance(results[0], asyncio.CancelledError)

    async def _send_frames(self, send: Send) -> None:
        async for frame in self._frames:
            self._sent_at = time.monotonic()
            await send({"type": "http.response.body", "body": frame, "more_body": True})

    async def _send_signs(self, send: Send) -> None:
        while True:
            quiet = time.monotonic() - self._sent_at
            if quiet >= self._pause:
                self._sent_at, quiet = time.monotonic(), 0.0
                await send({"type": "http.response.body", "body": self._idle(), "more_body": True})
            await asyncio.sleep(self._pause - quiet)
