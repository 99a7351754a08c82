"""A folder of safetensors files of which only the headers need to be there.

A reader sees every file at its full size: those that are not there yet, or no more, are a
header and a hole. So a model can be laid out before it is downloaded, and its conversion go
on after its first files were deleted.
"""

import os
import shutil
from pathlib import Path

from convert.target import reported, write_file


class Skeleton:
    """``folder/NAME`` is a link, to a real file or to a hollow one of the same size."""

    def __init__(self, folder: Path, identity: str) -> None:
        """Begin one, or go on with that of an earlier run if it has the same ``identity``."""
        self.folder = folder
        self._hollow = folder / "hollow"
        note = folder / "hollow" / ".identity"
        with reported(folder):
            if not note.is_file() or note.read_text() != identity:
                shutil.rmtree(folder, ignore_errors=True)
            self._hollow.mkdir(parents=True, exist_ok=True)
        write_file(note, identity)

    def add(self, name: str, header: bytes, size: int) -> None:
        """Know ``name``, a safetensors file of ``size`` bytes that begins with ``header``."""
        path = self._hollow / name
        with reported(path):
            path.write_bytes(header)
            os.truncate(path, size)
        self.empty(name)

    def keep(self, name: str, content: bytes) -> None:
        """Hold a small file as it is."""
        write_file(self.folder / name, content)

    def knows(self, name: str) -> bool:
        """Whether ``name`` was added, in this run or an earlier one."""
        return (self._hollow / name).is_file()

    def is_hollow(self, name: str) -> bool:
        """Whether only the header of ``name`` is there."""
        path = self.folder / name
        return path.resolve() == (self._hollow / name).resolve() or not path.exists()

    def fill(self, name: str, real: Path) -> None:
        """The file ``real`` is ``name`` from now on."""
        self._link(name, real.resolve())

    def empty(self, name: str) -> None:
        """Only the header of ``name`` remains."""
        self._link(name, Path("hollow", name))

    def _link(self, name: str, to: Path) -> None:
        link = self.folder / name
        new = link.with_name(f".{name}.link")
        with reported(link):
            new.unlink(missing_ok=True)
            new.symlink_to(to)
            new.replace(link)  # there is always one, whenever the process dies
