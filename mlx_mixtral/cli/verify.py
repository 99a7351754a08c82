"""``mixtral-mlx verify``: is a model still what it was when it was made?"""

from typing import Annotated

import typer

from mlx_mixtral.cli.progress import progress_bar


def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or an installed name.")],
) -> None:
    """Check every file of a model against the checksums noted when it was made or fetched."""
    from convert import manifest
    from convert.readers.detect import open_source
    from mlx_mixtral.catalog import resolve
    from mlx_mixtral.cli.sizes import size
    from mlx_mixtral.errors import ModelError

    folder = resolve(model)
    listed = manifest.read(folder).get("files")
    if listed is None:
        open_source(folder)  # its headers at least
        raise ModelError(
            f"{folder} has no manifest.json with checksums; its files are complete by their headers"
        )
    with progress_bar(f"checking {folder.name}") as progress:
        problems = manifest.verify(folder, progress)
    for problem in problems:
        print(problem)
    if problems:
        raise ModelError(
            f"{folder} is damaged: {len(problems)} of {len(listed)} files; fetch or convert it anew"
        )
    open_source(folder)
    total = sum(entry["size"] for entry in listed.values())
    print(f"{folder}: {len(listed)} files, {size(total)}, all as they were")
