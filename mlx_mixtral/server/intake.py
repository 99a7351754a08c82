"""Bodies of requests: of the right kind, no larger than allowed, and sent in time."""

from __future__ import annotations

import asyncio

from mlx_mixtral.server.asgi import App, Message, Receive, Scope, Send, header, send_refusal
from mlx_mixtral.server.failure import ClientGone, Refusal
from mlx_mixtral.server.settings import Limits

_OF_CURL = ("", "application/x-www-form-urlencoded")
"""What a body is said to be by those who do not say what it is, as in Ollama's examples."""


def _by_browser(scope: Scope) -> bool:
    return any(name == b"origin" or name.startswith(b"sec-fetch-") for name, _ in scope["headers"])


class Intake:
    """Reads the whole body before the application is called."""

    def __init__(self, app: App, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            self._check_kind(scope)
            body = await self._read(scope, receive)
        except Refusal as refusal:
            await send_refusal(scope, send, refusal)
            return
        told = False

        async def receive_again() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_again, send)

    def _check_kind(self, scope: Scope) -> None:
        kind = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
        coding = (header(scope, b"content-encoding") or "identity").strip().lower()
        if coding != "identity":
            told = f"the body may not be compressed ({coding[:40]})"
            raise Refusal(415, told, code="unsupported_media_type")
        if kind == "application/json":
            return
        if kind in _OF_CURL and scope["path"].startswith("/api/") and not _by_browser(scope):
            rest = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
            scope["headers"] = [*rest, (b"content-type", b"application/json")]
            return
        # Browsers send any other kind across origins without asking first.
        raise Refusal(415, "the body has to be application/json", code="unsupported_media_type")

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        length = header(scope, b"content-length") or "0"
        if length.isdecimal() and int(length[:20]) > self._limits.body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._limits.body_bytes:
                        raise self._too_large()
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Refusal(
                408,
                f"the body did not arrive within {self._limits.body_seconds:g} s",
                code="timeout",
                headers={"Connection": "close"},
            ) from None
        return b"".join(parts)

    def _too_large(self) -> Refusal:
        allowed = self._limits.body_bytes
        return Refusal(
            413, f"the body has more than the {allowed} bytes allowed", code="body_too_large"
        )
