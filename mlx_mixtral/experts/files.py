"""The files of a model, kept open, and read in parts by several threads."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mlx_mixtral.errors import ModelError
from mlx_mixtral.experts.policy import Counters

if TYPE_CHECKING:
    from mlx_mixtral.shards import Span

READERS = 4
"""Threads: SSDs and the system both give more to several at once."""
AT_ONCE = 1 << 22
"""Bytes that a thread reads at once, so that an expert keeps all of them busy."""
F_NOCACHE = 48  # <sys/fcntl.h> of macOS; Python does not name it


Part = tuple[memoryview, "Span"]
"""Memory, of bytes, and what is to be read into it."""


class Task(NamedTuple):
    """What is read where, and what is done once it is there."""

    parts: list[Part]
    then: Callable[[], None] | None = None


class Files:
    """Files that are expected to stay as they are while a model is used.

    The system is asked not to keep what is read: what is worth keeping lies in the slots.

    Attributes:
        close: ends the threads and closes the files; called at the latest when this goes.
    """

    def __init__(self, paths: Iterable[Path], counters: Counters) -> None:
        self._open: dict[Path, tuple[int, tuple[int, int]]] = {}
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="experts")
        self._lock, self._under_way, self._since = threading.Lock(), 0, 0.0
        self._counters = counters
        for path in sorted(set(paths)):
            self._open[path] = _open(path)
        self.close = weakref.finalize(self, _close, self._threads, list(self._open.values()))

    def start(self, tasks: Iterable[Task]) -> list[Future[None]]:
        """Begin to read; the results are None, or a ModelError.

        What is only read goes to all threads; what something is done to afterwards, to one.
        """
        futures = []
        for parts, then in tasks:
            self._counters.bytes += sum(span.nbytes for _, span in parts)
            reads = [
                partial(self._read, memory, span, at)
                for memory, span in parts
                for at in range(0, span.nbytes, AT_ONCE)
            ]
            works = reads if then is None else [partial(_one_by_one, [*reads, then])]
            futures += [self._submit(work) for work in works]
        return futures

    @property
    def paths(self) -> list[Path]:
        return list(self._open)

    def check(self) -> None:
        """Raises ModelError if a file has changed since it was opened."""
        for path, (descriptor, before) in self._open.items():
            if _state(descriptor) != before:
                raise ModelError(f"{path} was changed while the model was in use; load it again")

    def _submit(self, work: Callable[[], None]) -> Future[None]:
        with self._lock:
            if not self._under_way:
                self._since = time.perf_counter()
            self._under_way += 1
        future = self._threads.submit(work)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: Future[None]) -> None:
        with self._lock:
            self._under_way -= 1
            if not self._under_way:
                self._counters.reading += time.perf_counter() - self._since

    def _read(self, memory: memoryview, span: Span, at: int) -> None:
        """At most ``AT_ONCE`` bytes, from byte ``at`` of a span on."""
        descriptor, _ = self._open[span.file]
        memory = memory[at : at + AT_ONCE]
        begin = offset = span.offset + at
        size = len(memory)
        while memory:
            try:
                count = os.preadv(descriptor, [memory], offset)
            except OSError as error:
                raise ModelError(f"{span.file} cannot be read ({error.strerror})") from None
            if not count:
                raise ModelError(f"{span.file} ended while it was read; fetch it again")
            memory, offset = memory[count:], offset + count
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, begin, size, os.POSIX_FADV_DONTNEED)


def _one_by_one(works: Iterable[Callable[[], None]]) -> None:
    for work in works:
        work()


def _close(threads: ThreadPoolExecutor, opened: Iterable[tuple[int, tuple[int, int]]]) -> None:
    # Whoever reads holds the files: so nobody does any more. Nor is there a thread to be waited
    # for, and this may be the last of them.
    threads.shutdown(wait=False, cancel_futures=True)
    for descriptor, _ in opened:
        os.close(descriptor)


def _open(path: Path) -> tuple[int, tuple[int, int]]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, F_NOCACHE, 1)
    elif hasattr(os, "posix_fadvise"):
        # Without it the kernel reads on behind an expert, up to megabytes that nobody wants.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptor, _state(descriptor)


def _state(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
