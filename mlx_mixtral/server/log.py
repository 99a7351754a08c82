"""The server's log: one line an event, on standard error; JSON unless that is a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

Log = structlog.typing.FilteringBoundLogger


def make_log(level: str = "info") -> Log:
    """A log that tells what is at least as grave as ``level``."""
    terminal = sys.stderr.isatty()
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if terminal
        else structlog.processors.JSONRenderer(ensure_ascii=True)
    )
    processors = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=not terminal),
        *([] if terminal else [structlog.processors.format_exc_info]),
        renderer,
    ]
    log: Log = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level.upper()),
    )
    return log


def tell_of_libraries(log: Log) -> None:
    """What uvicorn and the engine have to say goes the same way."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi", "asyncio", "mlx_mixtral"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Passed(log)], False
        logger.setLevel(logging.WARNING)


class _Passed(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._log.log(record.levelno, record.getMessage(), source=record.name, exc_info=error)
