"""One file from Hugging Face to the disk, from where an earlier attempt left it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from convert.sources.choice import RemoteFile
from convert.sources.connection import headers, patiently, stream
from convert.target import opened, reported

Tell = Callable[[int], None]


def bring(name: str, commit: str, file: RemoteFile, part: Path, tell: Tell) -> None:
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
            _by_xet(url, file, part, tell)
        if (start := there()) >= file.size:
            return
        pieces = stream(url, start, file.size, file.size)
        with closing(pieces), opened(part) as out:
            for offset, piece in pieces:
                with reported(final):
                    if offset < start:  # the server knows no ranges and begins anew
                        os.truncate(out, offset)
                        start = offset
                    _write(out, piece[: file.size - offset], offset)
                tell(min(offset + len(piece), file.size))

    patiently(work, name, gained=there)


def address(name: str, commit: str, file: RemoteFile) -> str:
    """Where the hub has ``file``."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(name, file.name, revision=commit)


def _write(out: int, piece: bytes, offset: int) -> None:
    view = memoryview(piece)
    while view:
        written = os.pwrite(out, view, offset)
        view, offset = view[written:], offset + written


def _by_xet(url: str, file: RemoteFile, part: Path, tell: Tell) -> None:
    """Fetch ``file`` by Xet if the hub offers it: faster, but only from the beginning.

    Xet writes from front to back. What it does not finish, for whatever reason, the plain way
    does, and that tells what is wrong with the network.
    """
    from huggingface_hub import constants, get_hf_file_metadata
    from huggingface_hub.file_download import xet_get

    found = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, headers=headers())
    if found.xet_file_data is None or constants.HF_HUB_DISABLE_XET:
        return

    class Bar:
        """Stands where the library would have a progress bar, and draws nothing."""

        done = 0

        def __init__(self, **_: object) -> None: ...

        def update(self, count: int) -> None:
            self.done += count
            tell(min(self.done, file.size))

        def update_transfer(self, count: int) -> None: ...

        def set_postfix_str(self, *_: object, **__: object) -> None: ...

        set_transfer_postfix_str = set_postfix_str

    try:
        xet_get(
            incomplete_path=part,
            xet_file_data=found.xet_file_data,
            headers=headers(),
            expected_size=file.size,
            tqdm_class=Bar,
        )
    except Exception:
        return
