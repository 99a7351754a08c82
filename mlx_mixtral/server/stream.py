"""Answers that are sent while they are made: server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_mixtral.server.asgi import until_gone
from mlx_mixtral.server.record import record_of

_COMMENT = b": working\n\n"


class EventStream(Response):
    """Sends frames as they come, and a comment now and then while none come.

    Long prompts take minutes, and proxies and clients give silent connections up. When the
    client leaves, the frames' iterator is closed at once.
    """

    media_type = "text/event-stream"

    def __init__(
        self, frames: AsyncIterator[bytes], comment_seconds: float, release: Callable[[], None]
    ) -> None:
        """``release`` is called at the end, even if no frame was ever asked for."""
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._frames, self._pause, self._release = frames, comment_seconds, release
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
            for work in (self._send_frames(send), self._send_comments(send), until_gone(receive))
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

    async def _send_comments(self, send: Send) -> None:
        while True:
            quiet = time.monotonic() - self._sent_at
            if quiet >= self._pause:
                self._sent_at, quiet = time.monotonic(), 0.0
                await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
            await asyncio.sleep(self._pause - quiet)
