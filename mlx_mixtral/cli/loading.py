"""Getting a model ready, and saying so meanwhile."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_mixtral.load import LanguageModel

DEMO_NOTE = (
    "no model is installed, so this is the demo, a toy that knows little; "
    "`mixtral-mlx convert --help` tells how to get Mixtral"
)


def load_model(name: str | None) -> "LanguageModel":
    """The model of this name, else the one installed last, else the demo."""
    from mlx_mixtral.catalog import default_name

    if name is None:
        name = default_name()
        if name == "demo":
            print(DEMO_NOTE, file=sys.stderr)
    with waiting(f"loading {name}"):
        from mlx_mixtral.load import load

        return load(name)


@contextmanager
def waiting(for_what: str) -> Iterator[None]:
    """A spinner on standard error, where that is a terminal."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(for_what)):
        yield
