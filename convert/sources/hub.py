"""Models from Hugging Face: what a repository holds, and its files on disk, checked.

All requests are made through huggingface_hub, with its login, cache and HF_* settings. Its own
downloads begin a file anew after every stop, which is dear with files of 5 GB and more, so
files are fetched piece by piece here and taken up where they stopped.

API: https://huggingface.co/docs/hub/api, https://huggingface.co/docs/huggingface_hub
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from convert.sources.cache import cached
from convert.sources.checked import Checked
from convert.sources.choice import RemoteFile, choose
from convert.sources.connection import PATIENCE, patiently, stream
from convert.sources.transfer import address, bring
from convert.sources.xet import Xet
from convert.target import check_room
from mlx_mixtral.errors import MixtralError, ModelError, UsageError

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

__all__ = [
    "RemoteFile",
    "Repository",
    "cached",
    "download",
    "download_file",
    "header",
    "look",
    "parse",
]

Progress = Callable[[int, int], None]

_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST = 1 << 50


@dataclass(frozen=True)
class Repository:
    """The files of a repository that a model takes, at one commit."""

    name: str
    commit: str
    files: tuple[RemoteFile, ...]
    licence: str | None
    """As the repository's card says: ``apache-2.0``."""

    @property
    def origin(self) -> str:
        """How manifests name it: ``owner/name@commit``."""
        return f"{self.name}@{self.commit}"

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)


def parse(text: str) -> tuple[str, str | None] | None:
    """``owner/name`` or ``owner/name@revision``, taken apart; None: it is not of that form."""
    found = _NAME.fullmatch(text)
    if not found or ".." in text or "--" in found["name"]:
        return None
    return found["name"], found["revision"]


def look(name: str, revision: str | None = None, only: str | None = None) -> Repository:
    """Ask what repository ``name`` holds; ``only`` is as for ``choice.choose``.

    Raises:
        UsageError: there is no such repository or revision, or it holds several models.
        MixtralError: it may not be read, has no weights, or cannot be asked.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    def ask() -> Repository:
        info = HfApi(library_name="mixtral-mlx").model_info(
            name, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        return Repository(name, _commit(info), _files(name, info), _licence(info))

    try:
        # A network that is not there is soon told: nothing was begun that could be lost.
        every = patiently(ask, name, revision, patience=PATIENCE[:2])
    except HFValidationError:
        raise UsageError(f"{name!r} is not the name of a repository: owner/name") from None
    except UnicodeEncodeError:
        raise UsageError("the token in HF_TOKEN has characters that no token has") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise MixtralError(
            f"the answer of {constants.ENDPOINT} about {name} makes no sense ({error!r:.200}); "
            f"is there a proxy, or a network that wants a login?"
        ) from error
    return Repository(name, every.commit, choose(name, every.files, only), every.licence)


def _commit(info: ModelInfo) -> str:
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise ValueError("no commit")
    return info.sha


def _files(repository: str, info: ModelInfo) -> tuple[RemoteFile, ...]:
    """All files of the listing, which is believed in nothing."""
    files = []
    for entry in info.siblings or ():
        name, size = entry.rfilename, entry.lfs.size if entry.lfs else entry.size
        sha256, blob = entry.lfs.sha256 if entry.lfs else None, entry.blob_id
        if not _is_plain(name):
            raise ModelError(f"{repository} lists {name!r}, which points elsewhere; refused")
        if type(size) is not int or not 0 <= size < _LARGEST:
            raise ValueError(f"size of {name}")
        if not (_SHA256.fullmatch(sha256) if sha256 else blob and _COMMIT.fullmatch(blob)):
            raise ValueError(f"digest of {name}")
        files.append(RemoteFile(name, size, sha256, None if sha256 else blob))
    return tuple(files)


def _is_plain(name: str) -> bool:
    """Whether a name stays in its folder, and can be shown on a terminal and used on a disk."""
    if not name.isprintable() or "\\" in name:
        return False
    return all(part not in ("", ".", "..") and len(part.encode()) < 256 for part in name.split("/"))


def _licence(info: ModelInfo) -> str | None:
    tags = [tag for tag in info.tags or () if isinstance(tag, str)]
    named = [tag.removeprefix("license:") for tag in tags if tag.startswith("license:")]
    return named[0] if named and named[0].isprintable() else None


def header(repository: Repository, file: RemoteFile) -> bytes:
    """The beginning of a safetensors file: eight bytes of length, and the JSON they announce.

    Nothing else is transferred.

    Raises:
        ModelError: it cannot be a safetensors file.
        MixtralError: it cannot be fetched.
    """
    from mlx_mixtral.shards import LONGEST_HEADER

    start = _range(repository, file, 0, 8) if file.size >= 8 else b""
    length = int.from_bytes(start, "little")
    if not 0 < length <= min(file.size - 8, LONGEST_HEADER):
        raise ModelError(f"{file.name} of {repository.name} is not a safetensors file")
    return start + _range(repository, file, 8, 8 + length)


def _range(repository: Repository, file: RemoteFile, start: int, end: int) -> bytes:
    url = address(repository.name, repository.commit, file)

    def work() -> bytes:
        kept = bytearray()
        with closing(stream(url, start, end, file.size)) as pieces:
            for offset, piece in pieces:
                kept += piece[max(start - offset, 0) : max(end - offset, 0)]
        return bytes(kept)

    return patiently(work, repository.name)


def download(repository: Repository, folder: Path, progress: Progress | None = None) -> None:
    """Fetch all files of ``repository`` into ``folder``, which exists and is ours alone.

    Each is compared with the size and digest that the hub announced before it takes its name.
    Where an earlier run, of whatever end, left files and parts of files, it goes on from them;
    files that it fetched and that are not wanted any more go away. ``progress`` is given the
    bytes that are there and those that there will be.

    Raises:
        UsageError: the disk has not enough room.
        ModelError: what came is not what was announced.
        MixtralError: the network, the hub or the disk fails. A run after that goes on.
    """
    _fetch(repository, repository.files, folder, progress)
    Checked(folder).finish(repository.files)


def download_file(
    repository: Repository, file: RemoteFile, folder: Path, progress: Progress | None = None
) -> Path:
    """Fetch one file, in the same way, and give its path.

    A hidden list of what was checked stays in ``folder``. The errors are those of ``download``.
    """
    _fetch(repository, (file,), folder, progress)
    return folder / file.local


def _fetch(
    repository: Repository,
    files: Iterable[RemoteFile],
    folder: Path,
    progress: Progress | None,
) -> None:
    checked, xet = Checked(folder), Xet()
    here = {file: file.size if checked.holds(file) else checked.here(file) for file in files}
    total = sum(file.size for file in here)
    check_room(folder, total - sum(here.values()))

    def tell(file: RemoteFile, size: int) -> None:
        here[file] = size
        if progress:
            progress(sum(here.values()), total)

    for file in here:
        tell(file, here[file])
        if checked.holds(file):
            continue
        part, beat = checked.part(file), partial(tell, file)
        bring(repository.name, repository.commit, file, part, beat, xet)
        if not checked.accept(file):
            raise ModelError(
                f"{file.name} of {repository.name} came damaged and was removed: it is not "
                f"what Hugging Face announced; run the same command again"
            )
