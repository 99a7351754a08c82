"""The page for the browser, and a plain one that shows what the API takes."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from mlx_mixtral.server.asgi import App, Message, Receive, Scope, Send
from mlx_mixtral.server.docs import docs_page

PAGE = Path(__file__).parent / "page"
# Nothing but what comes from here runs, and nothing goes elsewhere.
_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",
}


def add_pages(api: FastAPI, folder: Path = PAGE) -> None:
    """``/``, ``/assets/...`` and ``/docs``."""
    if (folder / "index.html").is_file():

        @api.get("/", include_in_schema=False)
        async def page() -> Response:
            return FileResponse(folder / "index.html", headers=_HEADERS)

    if (folder / "assets").is_dir():
        api.mount("/assets", _Guarded(StaticFiles(directory=folder / "assets")))

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(api.openapi()), headers=_HEADERS)


class _Guarded:
    """Files with the page's headers."""

    def __init__(self, files: App) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._files(scope, receive, send_guarded)
