"""Where the server listens, and what signals do to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from mlx_mixtral.errors import MixtralError
from mlx_mixtral.server.asgi import App
from mlx_mixtral.server.connection import protocol
from mlx_mixtral.server.settings import Settings

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Listener(uvicorn.Server):
    """Serves until a signal comes, then lets answers under way come to an end.

    Attributes:
        signal: the one that came, or None.
    """

    def __init__(
        self, app: App, settings: Settings, ready: Callable[[], None], stopping: Callable[[], None]
    ) -> None:
        """``ready`` is called once connections are taken, ``stopping`` when no more will be."""
        limits = settings.limits
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=limits.header_bytes,
                timeout_keep_alive=int(limits.idle_seconds),
                timeout_graceful_shutdown=int(limits.drain_seconds),
            )
        )
        self._ready, self._stopping = ready, stopping
        self.signal: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, it does not let the signal kill the process afterwards."""
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end; the second one is the end."""
        if self.signal is not None:
            os._exit(128 + sig)
        self.signal = sig
        self.should_exit = True


def open_socket(settings: Settings) -> socket.socket:
    """The address taken, though nobody can connect before the server listens.

    Raises:
        MixtralError: the address is another program's, or none of this machine.
    """
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = found[0]
        opened = socket.socket(family, kind, proto)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        raise MixtralError(
            f"cannot listen on {host} port {port} ({error.strerror}); choose another --port"
        ) from None
    opened.setblocking(False)
    return opened


def address_of(opened: socket.socket) -> str:
    """``http://127.0.0.1:8080``"""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
