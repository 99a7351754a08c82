"""The parts of a conversion on their way: in any order, several at a time."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Protocol

from convert.interrupt import held_interrupt
from convert.journal import Journal
from convert.plan import Plan
from convert.writer import ShardWriter

WORKERS = 3
"""Threads that each take a part through: while one reads, one computes and one writes."""
FILES_AT_ONCE = 2
"""Source files that are in use at a time; with a feed, no more of them take room."""

Progress = Callable[..., None]
"""Is given the bytes done and those in all, and a note while the source is being fetched."""


class Feed(Protocol):
    """Brings the source's files when they are needed, and takes them away afterwards."""

    @property
    def identity(self) -> str:
        """What tells this source from every other one."""

    def fetch(self, file: Path, beat: Callable[[str], None]) -> None:
        """Return when ``file`` is whole; ``beat`` hears of it now and then meanwhile."""

    def drop(self, file: Path) -> None:
        """``file`` is not needed any more: all that was made of it is on the disk."""


@cache
def _workers() -> ThreadPoolExecutor:
    """Kept for good: MLX gives each thread a stream, whose own thread would outlive it."""
    return ThreadPoolExecutor(WORKERS)


def in_parallel(work: Callable[[int], object], numbers: Iterable[int]) -> None:
    """As the parts of a conversion are done."""
    list(_workers().map(work, numbers))


class Run:
    """The jobs of a plan under way, in the thread that owns it; only jobs run elsewhere."""

    def __init__(
        self,
        plan: Plan,
        writer: ShardWriter,
        journal: Journal,
        feed: Feed | None,
        progress: Progress | None,
    ) -> None:
        self.writer, self.journal, self.feed, self.progress = writer, journal, feed, progress
        self.jobs, self.files = plan.jobs, plan.source.files
        self.done, self.total = 0, plan.source_bytes
        self.to_do = set(range(len(self.jobs)))
        self.left = Counter(file for job in self.jobs for file in job.part.files)
        self.under_way: dict[Future[bool], int] = {}

    def all(self) -> None:
        """Do what an earlier run has not done."""
        with held_interrupt() as interrupted:
            self.interrupted = interrupted
            if self.progress:
                self.progress(0, self.total)
            try:
                for number, crc in self.journal.done.items():
                    if number < len(self.jobs):
                        self._submit(self._find, number, crc)
                self._wait()
                self._work()
                self._wait()
            except BaseException:
                for future in self.under_way:
                    future.cancel()
                wait(self.under_way)  # nobody may still write when the folder is let go
                raise

    def _work(self) -> None:
        """File by file, what is left to do."""
        due = defaultdict(list)  # a job can begin when the last of its files is there
        for number in sorted(self.to_do):
            due[max(self.jobs[number].part.files)].append(number)
        for position, file in enumerate(self.files):
            if not self.left[file]:  # all in it was done before
                continue
            if self.feed:
                self.feed.fetch(file, self._beat)
            for number in due[file]:
                self._submit(self._take, number)
            self._wait(self.files[: position + 1])

    def _wait(self, begun: Sequence[Path] | None = None) -> None:
        """Until all is done that was submitted, or few of the files ``begun`` are in use."""
        while self.under_way:
            if begun and sum(self.left[file] > 0 for file in begun) < FILES_AT_ONCE:
                return
            self._reap(timeout=0.2)

    def _beat(self, note: str) -> None:
        """The source is being fetched."""
        self._reap()
        if self.progress:
            self.progress(self.done, self.total, note)

    def _reap(self, timeout: float = 0) -> None:
        """Count what has been done meanwhile."""
        finished, _ = wait(self.under_way, timeout, FIRST_COMPLETED)
        for future in finished:
            number = self.under_way.pop(future)
            if future.result():
                self._count(number)
            self._heed_interrupt()
        self._heed_interrupt()

    def _heed_interrupt(self) -> None:
        if self.interrupted():
            raise KeyboardInterrupt

    def _count(self, number: int) -> None:
        part = self.jobs[number].part
        self.to_do.remove(number)
        self.done += part.nbytes
        if self.progress:
            self.progress(self.done, self.total)
        for file in part.files:
            self.left[file] -= 1
            if not self.left[file]:
                self._drop(file)

    def _drop(self, file: Path) -> None:
        if self.feed:
            self.writer.flush()
            self.journal.flush()
            self.feed.drop(file)

    def _submit(self, function: Callable[..., bool], number: int, *rest: int) -> None:
        self.under_way[_workers().submit(function, number, *rest)] = number

    def _take(self, number: int) -> bool:
        crc = self.jobs[number].run(self.writer)
        self.journal.note(number, crc)
        return True

    def _find(self, number: int, crc: int) -> bool:
        return self.writer.find(self.jobs[number].places, crc)
