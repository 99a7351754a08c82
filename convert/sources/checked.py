"""A folder of downloaded files, and which of them were found right.

A file takes its own name only after its check; a hidden list says which content that was, so
that a download that is taken up again neither fetches nor reads 90 GB a second time.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from convert.manifest import digest
from convert.sources.choice import RemoteFile
from convert.target import opened, reported, write_file
from mlx_mixtral.errors import ModelError
from mlx_mixtral.jsonfile import read_json

_LIST = ".checked"
_PART = ".*.part"
_BLOCK = 1 << 20


class Checked:
    """The files of one folder. No other process may be at work in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._found = read_json(folder / _LIST)
        except ModelError:  # the first time, or damaged: then files are read once more
            self._found = {}

    def part(self, file: RemoteFile) -> Path:
        """Where ``file`` is while it is not complete. Other content has another name."""
        return self.folder / f".{_identity(file)}.part"

    def here(self, file: RemoteFile) -> int:
        """How many of its bytes are in the folder."""
        for path in (self.folder / file.local, self.part(file)):
            if path.is_file():
                return min(path.stat().st_size, file.size)
        return 0

    def holds(self, file: RemoteFile) -> bool:
        """Whether it is here, complete and right. A file of that name that is not goes away."""
        path = self.folder / file.local
        if not path.is_file():
            return False
        with reported(path):
            right = path.stat().st_size == file.size
            if right and self._found.get(file.local) == _identity(file):
                return True
            if not right or _content(path, file) != _identity(file):
                path.unlink()
                return False
        self._note(file)
        return True

    def accept(self, file: RemoteFile) -> bool:
        """Check the part of ``file`` and give it its name; False: it was wrong, and is gone."""
        part = self.part(file)
        with reported(part):
            if part.stat().st_size != file.size or _content(part, file) != _identity(file):
                part.unlink()
                return False
            with opened(part) as descriptor:
                os.fsync(descriptor)
            part.rename(self.folder / file.local)
        self._note(file)
        return True

    def finish(self, files: Iterable[RemoteFile]) -> None:
        """Leave ``files`` alone in the folder, of all that was ever put into it here."""
        names = {file.local for file in files}
        stale = [self.folder / name for name in self._found if name not in names]
        with reported(self.folder):
            for path in (*stale, *self.folder.glob(_PART), self.folder / _LIST):
                path.unlink(missing_ok=True)
        self._found = {}

    def _note(self, file: RemoteFile) -> None:
        self._found[file.local] = _identity(file)
        beside = self.folder / f"{_LIST}.part"
        write_file(beside, json.dumps(self._found))
        with reported(beside):
            beside.rename(self.folder / _LIST)


def _identity(file: RemoteFile) -> str:
    """The digest that the hub gives for the content."""
    return file.sha256 or file.blob or ""


def _content(path: Path, file: RemoteFile) -> str:
    """The same digest, of what is on disk: sha256, or git's sha1 of a small file."""
    if file.sha256:
        return digest(path)
    sha1 = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            sha1.update(block)
    return sha1.hexdigest()
