"""``mixtral-mlx pull``: fetch a model and keep it."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mlx_mixtral.cli.sizes import size
from mlx_mixtral.cli.sources import (
    FileOption,
    ListenOption,
    PeerOption,
    PrivateOption,
    UploadOption,
    announce,
    fetch,
    give,
    swarm_settings,
)


def pull(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="owner/name[@revision] on Hugging Face, a magnet link, a .torrent file, "
            "or a name of `mixtral-mlx models --published`.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The folder; without it, among the installed models."),
    ] = None,
    file: FileOption = None,
    seed: Annotated[
        bool, typer.Option("--seed", help="BitTorrent: go on giving to others until Ctrl-C.")
    ] = False,
    listen: ListenOption = None,
    upload_limit: UploadOption = None,
    peer: PeerOption = None,
    no_discovery: PrivateOption = False,
) -> None:
    """Fetch a model: only the files that are needed, checked, taken up where it was left.

    Nothing is given to others by BitTorrent after the download unless --seed is there.
    """
    from convert.sources.address import Local, Swarm, parse
    from mlx_mixtral.catalog import models_home
    from mlx_mixtral.errors import UsageError

    address = parse(source)
    place = address.place
    if isinstance(place, Local):
        raise UsageError(f"{source} is here already; convert it, or chat with it")
    settings = swarm_settings(listen, upload_limit, peer, no_discovery)
    announce(address)
    found = fetch(place, out, (models_home(),), file, settings)
    total = sum(f.stat().st_size for f in found.path.rglob("*") if f.is_file())
    print(f"{found.path}: {size(total)}; {_advice(found.path)}", flush=True)
    if seed and isinstance(place, Swarm):
        give(place, found.path, settings)


def _advice(folder: Path) -> str:
    """What to do with it."""
    from mlx_mixtral.catalog import installed
    from mlx_mixtral.config import read_config
    from mlx_mixtral.errors import ModelError
    from mlx_mixtral.weights import open_weights

    name = shlex.quote(folder.name if folder.name in installed() else str(folder))
    try:
        open_weights(folder, read_config(folder))
    except ModelError:
        return f"convert it: mixtral-mlx convert {shlex.quote(str(folder))} -o OUT"
    return f"run it: mixtral-mlx chat {name}"
