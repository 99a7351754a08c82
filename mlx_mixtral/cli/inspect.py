"""``mixtral-mlx inspect``: what a model is, without converting or even fetching it."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_mixtral.cli.sizes import size
from mlx_mixtral.cli.sources import FileOption

if TYPE_CHECKING:
    from convert.readers import Source
    from convert.sources.address import Address, Hub


def inspect(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder, a file, or anything `pull` takes.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Facts for a program.")] = False,
    file: FileOption = None,
) -> None:
    """Tell what a model is: form, shapes, parameters, bytes, tokenizer, and what is odd.

    Of a Hugging Face repository only the headers of its files are fetched.
    """
    from convert.sources.address import parse

    show_facts(_facts(parse(source), file), as_json)


def show_facts(facts: Mapping[str, Any], as_json: bool) -> None:
    """Print them, for a person or a program."""
    from mlx_mixtral.cli.printable import printable

    print(json.dumps(facts, indent=2) if as_json else printable("\n".join(_lines(facts))))


def describe_folder(path: Path, file: str | None = None) -> dict[str, Any]:
    """Facts about a model on the disk."""
    from convert.inspection import describe
    from convert.readers.detect import open_source

    opened = open_source(path, file)
    return describe(opened) | {"tokenizer": _tokenizer(opened)}


def _facts(address: "Address", file: str | None) -> dict[str, Any]:
    from convert.sources.address import Hub, Local

    place = address.place
    if isinstance(place, Local):
        return describe_folder(place.path, file)
    if isinstance(place, Hub):
        return _remote(place, file)
    from convert.sources import magnet

    torrent = magnet.look(place.link, magnet.Settings())
    return {"form": "a torrent", "files": {f.path: f.size for f in torrent.files}}


def _remote(place: "Hub", file: str | None) -> dict[str, Any]:
    from convert.feeds import HubFeed, in_shards
    from convert.sources import hub

    repository = hub.look(place.name, place.revision, file)
    about = {
        "repository": repository.origin,
        "licence": repository.licence,
        "download_bytes": repository.size,
    }
    files = {f.name: f.size for f in repository.files}
    if not in_shards(repository):
        note = "only safetensors tell more before they are fetched"
        return about | {"files": files, "notes": [note]}
    with tempfile.TemporaryDirectory() as folder:
        return about | describe_folder(HubFeed(repository, Path(folder)).folder)


def _tokenizer(source: "Source") -> str | None:
    """Version and vocabulary, of the source's own files or of what the reader makes."""
    from mlx_mixtral.errors import ModelError
    from mlx_mixtral.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as made:
        for name, content in source.made.items():
            Path(made, name).write_bytes(content)
        for folder in (Path(made), source.folder):
            if folder and any(folder.glob("tokenizer.model*")):
                try:
                    tokenizer = Tokenizer.from_folder(folder)
                except ModelError as error:
                    return f"damaged: {error}"
                return f"{tokenizer.version}, {tokenizer.vocab_size:,} tokens"
    return None


def _lines(facts: Mapping[str, Any]) -> list[str]:
    """One fact a line: a name, and its value."""
    lines = []
    for name, value in facts.items():
        title = name.replace("_", " ")
        if name in ("weight_bytes", "download_bytes"):
            lines.append(f"{title.split()[0]:<20}{size(value)}")
        elif name == "shape":
            lines += [f"{n.replace('_', ' '):<20}{_text(v)}" for n, v in value.items()]
        elif name == "weights":
            for kind, count in value.items():
                lines.append(
                    f"{'':<20}{_count(count['tensors'], 'tensor')}, {size(count['bytes'])}: {kind}"
                )
        elif name == "files":
            lines.append(f"{'files':<20}{len(value)}, {size(sum(value.values()))}")
            lines += [f"{'':<20}{size(n):>9}  {file}" for file, n in value.items()]
        elif name == "notes":
            lines += [f"{'note':<20}{note}" for note in value]
        else:
            lines.append(f"{title:<20}{_text(value)}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
