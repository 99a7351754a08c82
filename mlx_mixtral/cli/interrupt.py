"""Ctrl-C that lets what is under way come to an end."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_asks(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls ``stop``, the next one interrupts."""

    def ask(_signal: int, _frame: object) -> None:
        stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
