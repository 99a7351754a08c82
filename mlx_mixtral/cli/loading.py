"""Getting a model ready, and saying so meanwhile."""

import sys
from typing import TYPE_CHECKING

from mlx_mixtral.cli.progress import progress_bar

if TYPE_CHECKING:
    from mlx_mixtral.generation.kv import KVSettings
    from mlx_mixtral.loading import LanguageModel

DEMO_NOTE = (
    "no model is installed, so this is the demo, a toy that knows little; "
    "`mixtral-mlx models --published` names the real ones"
)


def load_model(
    name: str | None,
    kv: "KVSettings | None" = None,
    context: int | None = None,
    force: bool = False,
    memory: str | None = None,
    read_ahead: int = 0,
) -> "LanguageModel":
    """The model of this name, else the one installed last, else the demo."""
    from mlx_mixtral.catalog import DEMO, default_name

    if name is None:
        name = default_name()
        if name == DEMO:
            print(DEMO_NOTE, file=sys.stderr)
    with progress_bar(f"loading {name}") as advance:
        from mlx_mixtral import load

        return load(
            name,
            kv=kv,
            context=context,
            memory=memory,
            read_ahead=read_ahead,
            force=force,
            progress=advance,
        )
