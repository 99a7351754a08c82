"""What a magnet link or a .torrent file names, and which of its files make a model.

Formats: https://www.bittorrent.org/beps/bep_0003.html (.torrent), bep_0009 (magnet links),
bep_0047 (attributes of files), bep_0052 (version 2). libtorrent reads the bencoded data and
checks the sizes and hashes in it. It also renames whatever a torrent must not be allowed to
write ("../x" becomes "_/x"); here such a torrent is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_mixtral.errors import MixtralError, ModelError, UsageError

if TYPE_CHECKING:
    import libtorrent as lt

WEIGHTS = ("consolidated*", "*.pth*", "*.pt", "*.safetensors", "*.gguf", "*.npz")
NEEDED = (*WEIGHTS, "*.json", "tokenizer*", "release*", "license*", "readme*")
"""Patterns for a file's own name in lower case; params.json and config.json are among them."""

# Enough for 2 million pieces with hashes of both versions; that of 8x22B has about 400 kB.
LARGEST = 128 << 20
# libtorrent cuts longer names; file systems take 255 bytes, and whole paths of 1,024 on macOS.
_LONGEST_NAME, _LONGEST_PATH = 240, 512
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that leave no mark."""


@dataclass(frozen=True)
class TorrentFile:
    """A file of a torrent: its path without the torrent's own top folder, its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class Torrent:
    """A torrent's contents. ``needed`` are those of ``files`` that a model is made of.

    ``info_hash`` is the torrent's name in the network, in hexadecimal: of version 1 where it
    has one. ``state`` is libtorrent's own record of it (resume data), which holds the
    metadata, the trackers, and the peers that were met.
    """

    name: str
    info_hash: str
    files: tuple[TorrentFile, ...]
    needed: tuple[TorrentFile, ...]
    state: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """What the needed files take on the disk, in bytes."""
        return sum(file.size for file in self.needed)


def libtorrent() -> Any:
    """The library, which is an optional part of this program.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import libtorrent
    except ImportError:
        raise UsageError(
            "downloading by magnet needs libtorrent: pip install 'mlx-mixtral[magnet]' "
            "(Python 3.13 or older)"
        ) from None
    return libtorrent


def read_torrent(path: Path) -> Torrent:
    """The torrent that a .torrent file describes.

    Raises:
        ModelError: there is no such file, it is damaged, holds no model, or names a file that
            may not be written.
    """
    lib = libtorrent()
    try:
        if path.stat().st_size > LARGEST:
            raise ModelError(f"{path} is far too large for a .torrent file")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"cannot read {ascii(str(path))[1:-1]}: {reason}") from None
    try:
        params = lib.load_torrent_buffer(data, {"max_buffer_size": LARGEST})
    except (RuntimeError, UnicodeError) as error:
        raise ModelError(f"{path} is not a torrent ({reason_of(error)}); fetch it again") from None
    return describe(params)


def describe(params: lt.add_torrent_params) -> Torrent:
    """The torrent that libtorrent's parameters hold the metadata of.

    Raises:
        ModelError: it holds no model, or names a file that may not be written.
    """
    lib = libtorrent()
    info, hashes = params.ti, params.info_hashes
    if info is None:
        raise ModelError("a magnet link instead of a torrent's contents; give the link itself")
    try:
        name, files = info.name(), tuple(file for _, file in listing(info))
        state: bytes = lib.write_resume_data_buf(params)
    except (RuntimeError, UnicodeError) as error:
        raise ModelError(f"the torrent is damaged ({reason_of(error)}); fetch it again") from None
    needed = tuple(file for file in files if is_needed(file.path))
    if not any(file.size and _matches(file.path, WEIGHTS) for file in needed):
        raise ModelError(f"the torrent {name!a} holds no weights of a model")
    info_hash = str(hashes.v1) if hashes.has_v1() else str(hashes.v2)
    return Torrent(name, info_hash, files, needed, state)


def is_needed(path: str) -> bool:
    """Whether a model is made of such a file. What is hidden never belongs to it."""
    return not any(name.startswith(".") for name in path.split("/")) and _matches(path, NEEDED)


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    name = path.rpartition("/")[2].lower()
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def listing(info: lt.torrent_info) -> list[tuple[int, TorrentFile]]:
    """libtorrent's numbers of a torrent's files, and the files; without those that only pad.

    Raises:
        ModelError: a name that could lead out of the folder, that is none, that a Mac or Linux
            could not take, or that differs from another in upper and lower case alone.
    """
    layout = info.layout()
    padding = layout.flag_pad_file
    numbers = [n for n in range(layout.num_files()) if not layout.file_flags(n) & padding]
    top, paths = _names(info, layout)
    _check_name(top, top)
    if len(paths) != len(numbers):
        raise ModelError("the torrent lists its files in two ways; refused")
    result, seen = [], dict[str, str]()
    for number, names in zip(numbers, paths, strict=True):
        path = "/".join(names)
        for name in names:
            _check_name(name, path)
        alone = len(numbers) == 1 and "/" not in layout.file_path(number)
        if layout.file_path(number) != (path if alone else f"{top}/{path}"):
            raise _refused(path, "a name that is not written as such")
        if len(path.encode()) > _LONGEST_PATH:
            raise _refused(path, "a path that is too long")
        if seen.setdefault(_folded(path), path) is not path:
            raise _refused(path, "two files of one name")
        result.append((number, TorrentFile(path, layout.file_size(number))))
    for path in list(seen.values()):
        parts = path.split("/")
        if any(_folded("/".join(parts[:end])) in seen for end in range(1, len(parts))):
            raise _refused(path, "a file and a folder of one name")
    return result


def _names(info: lt.torrent_info, layout: Any) -> tuple[str, list[list[str]]]:
    """The torrent's own name, and its files', as they stand in it, in libtorrent's order."""
    data: Any = libtorrent().bdecode(info.info_section())
    padding, symlink = layout.flag_pad_file, layout.flag_symlink
    tree, files = data.get(b"file tree"), data.get(b"files")
    top = _either(data, b"name", bytes)
    if isinstance(tree, dict):
        entries = list(_leaves(tree, []))
    elif isinstance(files, list):
        entries = [(_either(file, b"path", list), file) for file in files]
        entries = [e for n, e in enumerate(entries) if not layout.file_flags(n) & padding]
    else:
        entries = [([top], data)]
    flags = any(layout.file_flags(number) & symlink for number in range(layout.num_files()))
    if flags or any(b"l" in _either(entry, b"attr", bytes) for _, entry in entries):
        raise ModelError("the torrent holds a symbolic link; refused")
    try:
        return top.decode(), [[name.decode() for name in names] for names, _ in entries]
    except UnicodeDecodeError:
        raise ModelError("the torrent names a file in no known alphabet; refused") from None


def _either(entry: dict[bytes, Any], key: bytes, kind: type[Any]) -> Any:
    """A field in Unicode where the torrent has it so, as libtorrent takes it; else empty."""
    fields = (entry.get(key + b".utf-8"), entry.get(key))
    return next((value for value in fields if isinstance(value, kind)), kind())


def _leaves(tree: Any, above: list[bytes]) -> Iterator[tuple[list[bytes], Any]]:
    """The files of a version 2 torrent. libtorrent has bounded the depth to its limit."""
    for name, below in tree.items():
        if list(below) == [b""]:
            yield [*above, name], below[b""]
        else:
            yield from _leaves(below, [*above, name])


def _check_name(name: str, path: str) -> None:
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise _refused(path, "a name that is none or leads elsewhere")
    if any(unicodedata.category(c) in UNSEEN for c in name):
        raise _refused(path, "a name with characters that cannot be seen")
    if len(name.encode()) > _LONGEST_NAME:
        raise _refused(path, "a name that is too long")


def _folded(path: str) -> str:
    """The same for names that a Mac's disk, which ignores case, takes for one."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def _refused(path: str, reason: str) -> MixtralError:
    return ModelError(f"the torrent holds {reason} ({ascii(path)[:100]}); refused")


def reason_of(error: Exception) -> str:
    """libtorrent's words for an error, in one line, without its error numbers."""
    return re.sub(r"\s*\[[\w ]*:\d+\]\s*$", "", ascii(str(error))[1:-1])[:120]
