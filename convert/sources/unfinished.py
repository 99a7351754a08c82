"""The folder of a download that is under way, and what an earlier attempt left in it.

Its hidden part holds libtorrent's record of the pieces that are there, with the size and the
time of change of every file at that moment. Where those are the same still, the record is true;
where they are not, the last attempt was killed, and everything is read and checked first.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.sources.swarm import Swarm
from convert.sources.torrent import LARGEST, Torrent, describe, is_needed, libtorrent, listing
from convert.target import flush_folder, opened, reported, write_file
from mlx_mixtral.errors import MixtralError, ModelError, UsageError

if TYPE_CHECKING:
    import libtorrent as lt

_HIDDEN = ".torrent"
_RECORD = "record"
_DEFAULT, _UNWANTED = 4, 0  # libtorrent's priorities of files


def kept(folder: Path) -> Torrent | None:
    """The torrent that an earlier attempt was at in ``folder``; None if there was none."""
    record = _read(folder)
    return record[0] if record else None


def _read(folder: Path) -> tuple[Torrent, Any] | None:
    """The kept torrent and the state of the files at that time; None if there is no such record.

    A damaged one is none: everything is then checked anew.
    """
    lib, path = libtorrent(), folder / _HIDDEN / _RECORD
    try:
        if path.stat().st_size > LARGEST:
            return None
        record = lib.bdecode(path.read_bytes())
        torrent = describe(lib.read_resume_data(record[b"torrent"]))
    except (OSError, RuntimeError, TypeError, KeyError, UnicodeError, ModelError):
        return None
    return torrent, record.get(b"files")


class Unfinished:
    """``folder`` while ``torrent`` comes into it."""

    def __init__(self, folder: Path, torrent: Torrent) -> None:
        """
        Raises:
            UsageError: the folder holds something else.
        """
        self.folder, self.torrent = folder, torrent
        self._hidden = folder / _HIDDEN
        record = _read(folder)
        if record and record[0].info_hash != torrent.info_hash:
            raise UsageError(
                f"{folder} holds an unfinished download of another torrent "
                f"({record[0].name!a}); remove it, or choose another place with -o"
            )
        self._refuse_others()
        self._new = record is None
        self._state = record[0].state if record else torrent.state
        self.fresh = record is not None and record[1] == self._stamps()

    def _refuse_others(self) -> None:
        """What a finished folder holds is the torrent's: nothing may lie there before."""
        paths = {self.folder / file.path for file in self.torrent.needed}
        folders = {parent for path in paths for parent in path.parents} | {self._hidden}
        for path in sorted(self.folder.rglob("*")):
            if self._hidden in (path, *path.parents):
                continue
            sane = path.is_dir() if path in folders else path.is_file() and path in paths
            if not sane or path.is_symlink():
                raise UsageError(
                    f"{path} is not of this torrent; remove it, or choose another place with -o"
                )

    def here(self) -> int:
        """How much of the disk its files have taken already, in bytes."""
        sizes = 0
        for file in self.torrent.needed:
            path = self.folder / file.path
            if path.is_file():
                sizes += min(path.stat().st_blocks * 512, file.size)
        return sizes

    def params(self) -> lt.add_torrent_params:
        """What libtorrent is to know: where each file goes, and what of it is there already."""
        lib = libtorrent()
        with reported(self._hidden):
            self._hidden.mkdir(exist_ok=True)
        if self._new:
            self._note(self._state, {})
        params = placed(lib.read_resume_data(self._state), self.folder)
        known_as(params, lib.read_resume_data(self.torrent.state))
        params.part_file_dir = _HIDDEN
        if not self.fresh:
            params.have_pieces, params.verified_pieces, params.unfinished_pieces = [], [], {}
        return params

    def keep(self, swarm: Swarm) -> None:
        """Note what has come so far; nothing if that is not known for certain.

        The files are looked at before libtorrent is asked: should one change in between, the
        note is not believed later, and no harm is done.
        """
        if swarm.ready and swarm.flush():
            stamps = self._stamps()
            if swarm.save():
                self._note(swarm.record, stamps)

    def _note(self, state: bytes, stamps: dict[bytes, list[int]]) -> None:
        """Put libtorrent's record on the disk, all of it or nothing."""
        path = self._hidden / (_RECORD + ".new")
        with reported(path):
            write_file(path, libtorrent().bencode({b"torrent": state, b"files": stamps}))
            path.rename(self._hidden / _RECORD)

    def _stamps(self) -> dict[bytes, list[int]]:
        found = {}
        for file in self.torrent.needed:
            path = self.folder / file.path
            if path.is_file():
                status = path.stat()
                found[file.path.encode()] = [status.st_size, status.st_mtime_ns]
        return found

    def finish(self) -> None:
        """Leave the files alone in the folder, and all of them on the disk.

        Raises:
            MixtralError: a file has another size than it should, which nothing explains.
        """
        for file in self.torrent.needed:
            path = self.folder / file.path
            with reported(path):
                if path.stat().st_size != file.size:
                    raise MixtralError(f"{path} changed meanwhile; run the same command again")
                with opened(path) as descriptor:
                    os.fsync(descriptor)
                flush_folder(path.parent)
        with reported(self._hidden):
            shutil.rmtree(self._hidden)


def known_as(params: lt.add_torrent_params, other: lt.add_torrent_params) -> lt.add_torrent_params:
    """``params`` with the trackers and peers of ``other`` besides its own."""
    params.trackers = list(dict.fromkeys([*params.trackers, *other.trackers]))
    params.tracker_tiers = []
    params.peers = list(dict.fromkeys([*params.peers, *other.peers]))
    return params


def placed(params: lt.add_torrent_params, folder: Path) -> lt.add_torrent_params:
    """The needed files straight in ``folder``, without the torrent's own top folder.

    The others are neither fetched nor written; were they, it would be among what is hidden.
    """
    info = params.ti
    assert info is not None
    numbers = range(info.layout().num_files())
    needed = {number: file.path for number, file in listing(info) if is_needed(file.path)}
    params.save_path = str(folder)
    params.renamed_files = {n: needed.get(n, f"{_HIDDEN}/{n}") for n in numbers}
    params.file_priorities = [_DEFAULT if n in needed else _UNWANTED for n in numbers]
    params.piece_priorities = []
    params.flags = 0
    return params
