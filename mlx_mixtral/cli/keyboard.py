"""The keyboard while nobody reads it."""

import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def keys_unechoed() -> Iterator[None]:
    """Keys typed meanwhile stay off the screen; the next prompt finds them."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = termios.tcgetattr(sys.stdin)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
