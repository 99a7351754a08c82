"""The folder that a command makes: all of it or nothing, and what an interrupt left goes on.

Everything is written to a hidden folder beside the target, ``.NAME.partial``, which takes the
target's name in the end by one rename: at no moment does an unfinished model stand there. It
is kept when the work stops before its end, so that the same command can take it up.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_mixtral.errors import MixtralError, UsageError

_WRITE_BYTES = 1 << 30  # macOS refuses single writes of 2 GiB and more


@contextmanager
def partial(target: Path) -> Iterator[Path]:
    """A hidden folder, as an earlier attempt left it, that becomes ``target`` at the end.

    It stands in ``partial_of(target)``, where the block may keep notes for the next attempt
    beside it. If the block raises, all of it stays, unless the folder is empty. A lock keeps
    other processes out meanwhile.

    Raises:
        UsageError: ``target`` holds files already.
        MixtralError: another process is at work on the same target.
    """
    target = target.expanduser().resolve()
    check_target(target)
    work = partial_of(target)
    folder = work / "files"
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(work, target):
        try:
            yield folder
        except BaseException:
            if not any(folder.iterdir()):
                shutil.rmtree(work, ignore_errors=True)
            raise
        check_target(target)
        with reported(target):
            flush_folder(folder)
            folder.rename(target)
            flush_folder(target.parent)
        shutil.rmtree(work, ignore_errors=True)


def partial_of(target: Path) -> Path:
    """The hidden folder where ``target`` is made, whether it is there or not."""
    target = target.expanduser().resolve()
    return target.parent / f".{target.name}.partial"


def check_target(target: Path) -> None:
    """Fail unless a model may be written to ``target``: nothing there yet, or an empty folder."""
    target = target.expanduser()
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file; choose another folder with -o")
    if target.is_mount() or any(target.iterdir()):
        raise UsageError(
            f"{target} holds files already; remove it or choose another folder with -o"
        )


def check_room(folder: Path, size: int) -> None:
    """Fail unless ``size`` more bytes fit on the disk of ``folder``, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    with reported(folder):
        free = shutil.disk_usage(folder).free
    if size > free:
        raise UsageError(
            f"not enough room in {folder}: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB "
            f"are free; make room or choose another place with -o"
        )


@contextmanager
def _locked(folder: Path, target: Path) -> Iterator[None]:
    """The folder itself is locked, so that nothing of the lock remains in it."""
    with opened(folder, os.O_RDONLY) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MixtralError(f"another mixtral-mlx is writing {target}; wait for it") from None
        if not folder.exists() or os.fstat(file).st_ino != folder.stat().st_ino:
            raise MixtralError(f"another mixtral-mlx has just written {target}")
        yield


@contextmanager
def opened(path: Path, flags: int = os.O_WRONLY) -> Iterator[int]:
    """A file descriptor."""
    file = os.open(path, flags)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """What the operating system refuses, told in one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; make room and run the same command again"
        raise MixtralError(f"cannot write {path}: {reason}") from error


def write_file(path: Path, text: str | bytes) -> None:
    """Write a small file and flush it to the disk."""
    with reported(path):
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        with opened(path) as file:
            os.fsync(file)


def write_at(file: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` into an open file, from ``offset`` on."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view[:_WRITE_BYTES], offset)
        view, offset = view[written:], offset + written


def flush_folder(folder: Path) -> None:
    """Put the folder's entries on the disk."""
    with opened(folder, os.O_RDONLY) as file:
        os.fsync(file)
