"""``--prompt-cache``: keys and values out of a file, and back into it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_mixtral.cli.progress import progress_bar
from mlx_mixtral.cli.sizes import size

if TYPE_CHECKING:
    from mlx_mixtral.generation.kv import KVSettings
    from mlx_mixtral.generation.kv_file import Progress

LARGE = 10**8
"""Bytes from which writing takes long enough to be told."""

Read = Callable[[Path], None]
Write = Callable[[Path, "Progress | None"], None]


@contextmanager
def kept_in(path: Path | None, read: Read, write: Write) -> Iterator[None]:
    """What a file holds is taken over beforehand; however this ends, it holds the present then.

    Without a path nothing is done.
    """
    if path is None:
        yield
        return
    if path.exists():
        read(path)
    try:
        yield
    finally:
        with progress_bar(f"writing {path}") as advance:
            write(path, advance or _Teller(path))


class _Teller:
    """Says once how much is being written, where there is no terminal for a bar."""

    def __init__(self, path: Path) -> None:
        self._path, self._told = path, False

    def __call__(self, done: int, total: int) -> None:
        if total >= LARGE and not self._told:
            print(f"writing {size(total)} of keys and values to {self._path}", file=sys.stderr)
            self._told = True


def check_kept(bits: int | None, window: int | None, path: Path | None) -> "KVSettings":
    """What can be told before a model is loaded. Raises UsageError."""
    from mlx_mixtral.generation.kv import KVSettings
    from mlx_mixtral.generation.kv_file import check_target

    if path is not None:
        check_target(path)
    return KVSettings(bits, window)
