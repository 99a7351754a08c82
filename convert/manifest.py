"""``manifest.json``: where a folder's model comes from, and the sha256 of every file of it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convert.target import write_file
from mlx_mixtral.errors import ModelError
from mlx_mixtral.jsonfile import read_json

NAME = "manifest.json"
_BLOCK = 1 << 22


def write(folder: Path, origin: Mapping[str, Any], sha256: Mapping[str, str]) -> None:
    """Write the manifest of ``folder``: every file of it is listed.

    ``origin`` says where it comes from, for people and for ``mixtral-mlx models``:
    ``{"source": "mistralai/Mixtral-8x7B-v0.1@<commit>", ...}``. ``sha256`` holds the digests
    that are known already, by file name; the rest is computed here.
    """
    files = {
        name: {"size": path.stat().st_size, "sha256": sha256.get(name) or digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (name := path.relative_to(folder).as_posix()) != NAME
    }
    write_file(folder / NAME, json.dumps({**origin, "files": files}, indent=1) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """The manifest of ``folder``; empty where there is none.

    Raises:
        ModelError: it is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return {}
    manifest = read_json(path)
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_is_entry(n, e) for n, e in files.items()):
        raise ModelError(f"{path} is damaged: it does not list files with size and sha256")
    return manifest


def _is_entry(name: str, entry: Any) -> bool:
    inside = not name.startswith("/") and ".." not in name.split("/")
    return inside and isinstance(entry, dict) and {"size", "sha256"} <= entry.keys()


def verify(folder: Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """What is wrong with the files of ``folder``, one sentence each; empty: nothing."""
    files = read(folder)["files"]
    done, total = 0, sum(entry["size"] for entry in files.values())
    problems = []
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (size := path.stat().st_size) != entry["size"]:
            problems.append(f"{name} has {size:,} bytes instead of {entry['size']:,}")
        elif digest(path) != entry["sha256"]:
            problems.append(f"{name} has changed: its sha256 is another")
        done += entry["size"]
        if progress:
            progress(done, total)
    return problems


def digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    sha256 = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
    return sha256.hexdigest()
