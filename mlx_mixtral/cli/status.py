"""One line that says what is going on."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """Yields a function that shows what is being done, on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return

    # One line written over, no spinner: redrawing one would disturb what is measured.
    def tell(what: str) -> None:
        print(f"\r\x1b[K{what} ...", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
