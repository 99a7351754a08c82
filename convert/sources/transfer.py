"""One file from Hugging Face to the disk, from where an earlier attempt left it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from convert.sources.choice import RemoteFile
from convert.sources.connection import patiently, stream
from convert.sources.xet import Xet
from convert.target import opened, reported, write_at

Tell = Callable[[int], None]


def bring(name: str, commit: str, file: RemoteFile, part: Path, tell: Tell, xet: Xet) -> None:
    """Let ``part`` grow to the size of ``file``, of repository ``name`` at ``commit``.

    What is in ``part`` is taken to be the file's beginning; whether all of it is right is for
    the caller to check. ``tell`` is given the size that ``part`` has.

    Raises:
        MixtralError: the network, the hub or the disk fails. What came stays in ``part``.
    """
    url = address(name, commit, file)
    final = part.with_name(file.local)
    with reported(final):
        part.touch()

    def there() -> int:
        return part.stat().st_size

    def work() -> None:
        if not there() and file.sha256:
            xet.fetch(url, part, file.size, tell)
        start = there()
        tell(start)
        if start >= file.size:
            return
        pieces = stream(url, start, file.size, file.size)
        with closing(pieces), opened(part) as out:
            for offset, piece in pieces:
                with reported(final):
                    write_at(out, piece, offset)
                tell(min(offset + len(piece), file.size))

    patiently(work, name, gained=there)


def address(name: str, commit: str, file: RemoteFile) -> str:
    """Where the hub has ``file``."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(name, file.name, revision=commit)
