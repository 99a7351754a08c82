"""Getting a model ready, and saying so meanwhile."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_mixtral.loading import LanguageModel

DEMO_NOTE = (
    "no model is installed, so this is the demo, a toy that knows little; "
    "`mixtral-mlx convert --help` tells how to get Mixtral"
)


def load_model(name: str | None) -> "LanguageModel":
    """The model of this name, else the one installed last, else the demo."""
    from mlx_mixtral.catalog import DEMO, default_name

    if name is None:
        name = default_name()
        if name == DEMO:
            print(DEMO_NOTE, file=sys.stderr)
    with progress_bar(f"loading {name}") as advance:
        from mlx_mixtral.loading import load

        return load(name, progress=advance)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar of bytes done on standard error while this runs, where that is a terminal."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
