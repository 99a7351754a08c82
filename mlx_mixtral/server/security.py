"""Who may talk to the server: the names it is called by, browsers' origins, and the API key."""

from __future__ import annotations

import hmac

from mlx_mixtral.server.asgi import App, Message, Receive, Scope, Send, header, send_refusal
from mlx_mixtral.server.failure import Refusal
from mlx_mixtral.server.settings import Settings

# What a program that watches the server, or the page before it knows the key, may see.
OPEN_PATHS = ("/", "/health", "/ready", "/docs", "/openapi.json")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Doorkeeper:
    """Lets in only what calls the server by its name, from no foreign page, in few words.

    A web page can make a browser on this machine send requests here. The browser says which
    page it was (Origin), and a page that came by DNS rebinding says so by the Host it names.
    """

    def __init__(self, app: App, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif refusal := self._refusal(scope):
            await send_refusal(scope, send, refusal)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        limits = self._settings.limits
        if len(scope["headers"]) > limits.headers:
            return Refusal(431, f"more than {limits.headers} headers", code="headers_too_large")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > limits.header_bytes:
            told = f"the headers have more than {limits.header_bytes} bytes"
            return Refusal(431, told, code="headers_too_large")
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        host = str(hosts[0], "latin-1") if len(hosts) == 1 else ""
        if not self._settings.may_be_called(host):
            return Refusal(
                403, "the Host header names another server; see --allow-host", code="host"
            )
        origin = header(scope, b"origin")
        if origin is None or origin in self._settings.origins:
            return None
        if origin == f"{scope['scheme']}://{host}":
            return None
        return Refusal(403, "the page's origin is not allowed; see --cors", code="origin")


class KeyCheck:
    """Asks for the API key, if there is one, everywhere but at ``OPEN_PATHS`` and the page."""

    def __init__(self, app: App, key: str | None) -> None:
        self._app, self._key = app, key.encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        told = header(scope, b"authorization") is not None
        what = "the API key is wrong" if told else "an API key is needed"
        refusal = Refusal(
            401,
            f"{what}: send it as 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await send_refusal(scope, send, refusal)

    def _may_pass(self, scope: Scope) -> bool:
        path = scope["path"]
        if self._key is None or path in OPEN_PATHS or path.startswith("/assets/"):
            return True
        scheme, _, key = (header(scope, b"authorization") or "").partition(" ")
        given = key.strip().encode("latin-1", "replace")
        return scheme.lower() == "bearer" and hmac.compare_digest(given, self._key)


class Guarded:
    """Adds the headers that keep other sites' pages from reading what is sent from here."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                have = {name for name, _ in message["headers"]}
                added = [(name, value) for name, value in _HEADERS if name not in have]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, send_guarded)
