"""A loaded model served until a signal comes."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlx_mixtral.server.app import make_app
from mlx_mixtral.server.engine import Engine
from mlx_mixtral.server.listener import Listener
from mlx_mixtral.server.log import make_log, tell_of_libraries
from mlx_mixtral.server.service import Service
from mlx_mixtral.server.settings import Settings

if TYPE_CHECKING:
    from mlx_mixtral.loading import LanguageModel


def serve(
    lm: LanguageModel,
    engine: Engine,
    settings: Settings,
    opened: socket.socket,
    ready: Callable[[], None],
    log_level: str = "info",
) -> int:
    """Serve; the exit code: 0 after SIGTERM, 130 after Ctrl-C.

    Args:
        engine: not started yet.
        opened: of ``listener.open_socket``.
        ready: called once connections are taken.
    """
    log = make_log(log_level)
    tell_of_libraries(log)
    service = Service(lm, engine, settings)
    engine.start()
    listener = Listener(make_app(service, log), settings, ready, service.stop)
    try:
        asyncio.run(listener.serve(sockets=[opened]))
    finally:
        # What still runs is of clients that were not waited for any longer.
        left = engine.status()
        engine.stop(drain=not (left.running or left.waiting))
    return 130 if listener.signal == signal.SIGINT else 0
