"""Torrents made for tests, and a session on this computer that gives what they name."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import libtorrent as lt

PIECE = 16384


def write_content(folder: Path, sizes: Mapping[str, int], seed: int = 0) -> Path:
    """Files of random bytes in ``folder``, by their path and size."""
    source = random.Random(seed)
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.randbytes(size))
    return folder


def make_torrent(
    content: Path, version: str = "1", piece: int = PIECE, trackers: Iterable[str] = ()
) -> bytes:
    """The .torrent file of a folder or file; ``version`` is "1", "2" or "both"."""
    kinds = lt.create_torrent
    flags = {"1": kinds.v1_only, "2": kinds.v2_only, "both": 0}[version]
    maker = lt.create_torrent(lt.list_files(str(content)), piece, flags)
    for tracker in trackers:
        maker.add_tracker(tracker)
    lt.set_piece_hashes(maker, str(content.parent))
    return bencoded(maker.generate())


def named_torrent(
    paths: Iterable[Any], size: int = 1, top: bytes = b"model", **attributes: Any
) -> bytes:
    """A version 1 torrent of files at exactly these paths, each a sequence of bytes."""
    files = [{b"length": size, b"path": path} for path in paths]
    for file in files[:1]:
        file.update({key.encode(): value for key, value in attributes.items()})
    total = sum(file[b"length"] for file in files)
    info = {b"name": top, b"piece length": PIECE, b"files": files}
    return bencoded({b"info": {**info, b"pieces": bytes(20 * -(-total // PIECE))}})


def bencoded(value: Any) -> bytes:
    encoded: bytes = lt.bencode(value)
    return encoded


class Seeder:
    """A libtorrent session on 127.0.0.1 that has a torrent's content in ``folder``, or says so.

    ``limit``: bytes per second that it gives. It believes that all of it is there as the
    torrent says, without a look: what is damaged is given damaged.
    """

    def __init__(self, torrent: bytes, folder: Path, limit: int = 0) -> None:
        params = lt.load_torrent_buffer(torrent)
        params.save_path = str(folder)
        params.flags = 0
        params.upload_limit = limit or -1
        assert params.ti is not None
        params.have_pieces = [True] * params.ti.num_pieces()
        self.session: Any = lt.session(
            {
                "listen_interfaces": "127.0.0.1:0",
                "enable_dht": False,
                "enable_lsd": False,
                "enable_upnp": False,
                "enable_natpmp": False,
                "allow_multiple_connections_per_ip": True,
                "stop_tracker_timeout": 0,
                "tick_interval": 100,  # milliseconds; a limit is kept in steps of this
            }
        )
        self.handle = self.session.add_torrent(params)
        hashes = params.info_hashes
        self.hash = f"btih:{hashes.v1}" if hashes.has_v1() else f"btmh:1220{hashes.v2}"
        deadline = time.monotonic() + 5
        while not (self.session.is_listening() and self.handle.status().is_seeding):
            assert time.monotonic() < deadline, "the seeder has not started"
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.handle = self.session = None

    @property
    def peer(self) -> str:
        return f"127.0.0.1:{self.session.listen_port()}"

    @property
    def link(self) -> str:
        return f"magnet:?xt=urn:{self.hash}&dn=model&x.pe={self.peer}"

    @property
    def given(self) -> int:
        """Bytes of content that were sent to peers."""
        return int(self.handle.status().total_payload_upload)

    def lift(self) -> None:
        """Give as fast as it can from now on."""
        self.handle.set_upload_limit(-1)

    @property
    def peers(self) -> int:
        return int(self.handle.status().num_peers)


def flip(path: Path, at: int) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones too, by its path."""
    found = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
