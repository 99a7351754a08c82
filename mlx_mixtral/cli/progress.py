"""A bar for work that takes a while."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[..., None] | None]:
    """Bytes, rate and time left on standard error while this runs, where that is a terminal.

    Yields a function to call with (bytes done, bytes in all) and perhaps a note to show in
    place of ``what``, or None where there is no terminal.
    """
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(what), total=None)

        def show(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total or None, description=escape(note or what))

        yield show


@contextmanager
def kept_on_interrupt(target: Path) -> Iterator[None]:
    """Say after Ctrl-C that what is done of the folder ``target`` is kept."""
    from convert.target import partial_of

    try:
        yield
    except KeyboardInterrupt:
        if (work := partial_of(target)).exists():
            print(f"\nstopped; the same command goes on from here ({work})", file=sys.stderr)
        raise
