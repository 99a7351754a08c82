"""``mixtral-mlx models``: what is installed, what it is, and away with it."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_mixtral.cli.sizes import size

app = typer.Typer(help="List, show and remove installed models.", rich_markup_mode=None)
JsonOption = Annotated[bool, typer.Option("--json", help="For a program.")]


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    published: Annotated[
        bool, typer.Option("--published", help="The names that pull and convert know.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the installed models, with sizes and origins."""
    if context.invoked_subcommand is not None:
        return
    rows = list(_published() if published else _installed())
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['name']:<36} {size(row['bytes']):>9}  {row['about']}")
    if not published:
        from mlx_mixtral.catalog import models_home

        print(f"They lie in {models_home()}; `mixtral-mlx pull` adds to them.", file=sys.stderr)


@app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME")], as_json: JsonOption = False) -> None:
    """Tell where a model lies, where it comes from and what it is."""
    from convert import manifest
    from mlx_mixtral.catalog import resolve
    from mlx_mixtral.cli.inspect import describe_folder, show_facts

    folder = resolve(name)
    origin = {k: v for k, v in manifest.read(folder).items() if k == "source"}
    show_facts({"folder": str(folder), **origin, **describe_folder(folder)}, as_json)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete an installed model, a source or what is unfinished, by the name in the list."""
    from mlx_mixtral.errors import UsageError

    rows = {row["name"]: row for row in _installed() if row["folder"]}
    if name not in rows:
        raise UsageError(f"{name!r} is not installed; there are: {', '.join(rows) or 'none'}")
    folder, amount = Path(rows[name]["folder"]), size(rows[name]["bytes"])
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"give --yes to delete {folder} ({amount}) without being asked")
        typer.confirm(f"delete {folder} ({amount})?", abort=True)
    # Out of the list at once: what is half deleted must not be taken for a model.
    doomed = folder.with_name(f".{folder.name.lstrip('.')}.removed")
    folder.rename(doomed)
    shutil.rmtree(doomed)
    print(f"removed {folder} ({amount})")


def _published() -> Iterator[dict[str, Any]]:
    from convert.sources.published import PUBLISHED

    for model in PUBLISHED.values():
        about = f"{model.description}; {model.licence}"
        yield {"name": model.name, "bytes": model.size, "about": about, "source": model.source}


def _installed() -> Iterator[dict[str, Any]]:
    from mlx_mixtral.catalog import DEMO, models_home, resolve, sources_home

    yield _row(DEMO, resolve(DEMO), "comes with this program") | {"folder": ""}
    for home, kind in ((models_home(), ""), (sources_home(), "to be converted; ")):
        for folder in sorted(home.iterdir()) if home.is_dir() else []:
            if folder.name.endswith(".partial"):
                about = "unfinished: the command that began it goes on with it"
                yield _row(folder.name, folder, about)
            elif folder.is_dir() and not folder.name.startswith("."):
                yield _row(folder.name, folder, kind + _origin(folder))


def _origin(folder: Path) -> str:
    from convert import manifest
    from mlx_mixtral.errors import ModelError

    try:
        return f"from {manifest.read(folder).get('source') or 'an unknown place'}"
    except ModelError as error:
        return str(error)


def _row(name: str, folder: Path, about: str) -> dict[str, Any]:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    used = sum(min(f.stat().st_size, f.stat().st_blocks * 512) for f in files)
    return {"name": name, "bytes": used, "about": about, "folder": str(folder)}
