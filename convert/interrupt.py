"""Ctrl-C at a moment of our choosing."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def held_interrupt() -> Iterator[Callable[[], bool]]:
    """While this runs, Ctrl-C raises nothing; the function given says whether it was pressed.

    KeyboardInterrupt comes between any two instructions. In the middle of a thread pool's
    bookkeeping it leaves a lock taken, or a thread that nobody ends, and the program hangs.
    So it is raised at the end instead. Where Ctrl-C means something else already, or in other
    threads, nothing is changed.
    """
    pressed = False

    def note(*_: object) -> None:
        nonlocal pressed
        pressed = True

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt
