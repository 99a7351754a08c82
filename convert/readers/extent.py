"""Where an array lies in a file, or across the pieces of a file that was cut into several."""

import io
import math
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_mixtral.errors import ModelError

_READ_BYTES = 1 << 30  # macOS refuses single reads of 2 GiB and more


@dataclass(frozen=True)
class Joined:
    """One file, or several that are plain byte slices of one, in order."""

    pieces: tuple[Path, ...]

    @cached_property
    def _ends(self) -> list[int]:
        try:
            return list(accumulate(piece.stat().st_size for piece in self.pieces))
        except OSError as error:
            raise ModelError(f"{error.filename}: {error.strerror}; fetch it again") from error

    @property
    def size(self) -> int:
        return self._ends[-1]

    def files(self, begin: int, end: int) -> tuple[Path, ...]:
        """The pieces that hold bytes ``begin`` to ``end``."""
        first = min(bisect_right(self._ends, begin), len(self.pieces) - 1)
        last = bisect_right(self._ends, max(begin, end - 1))
        return self.pieces[first : last + 1]

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from ``offset`` on; returns the bytes read, fewer where the file ends."""
        done = 0
        for piece, begin, end in zip(self.pieces, [0, *self._ends[:-1]], self._ends, strict=True):
            if done == len(view) or offset + done >= end:
                continue
            with piece.open("rb", buffering=0) as file:
                file.seek(offset + done - begin)
                wanted = min(len(view) - done, end - offset - done)
                while wanted:
                    read = file.readinto(view[done : done + min(wanted, _READ_BYTES)])
                    if not read:
                        return done
                    done, wanted = done + read, wanted - read
        return done

    def open(self) -> io.BufferedReader:
        """The whole as one seekable binary file."""
        return io.BufferedReader(_Stream(self))


class _Stream(io.RawIOBase):
    def __init__(self, joined: Joined) -> None:
        self._joined, self._at = joined, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._joined.size}[whence]
        if start + offset < 0:
            raise OSError("seek before the beginning")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        read = self._joined.read_into(memoryview(buffer).cast("B"), self._at)
        self._at += read
        return read


@dataclass(frozen=True)
class Extent:
    """A row-major array of ``shape`` and ``dtype`` that begins at byte ``offset``."""

    file: Joined
    offset: int
    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size

    @property
    def files(self) -> tuple[Path, ...]:
        return self.file.files(self.offset, self.offset + self.nbytes)

    def part(self, start: int, shape: Sequence[int]) -> "Extent":
        """The array of ``shape`` that begins ``start`` elements into this one."""
        return Extent(self.file, self.offset + start * self.dtype.size, tuple(shape), self.dtype)

    def rows(self, begin: int, end: int) -> "Extent":
        """Rows ``begin`` to ``end`` of the first axis."""
        width = math.prod(self.shape[1:])
        return self.part(begin * width, (end - begin, *self.shape[1:]))

    def raw(self) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """Its bytes.

        Raises:
            ModelError: the file ended before them, or cannot be read.
        """
        buffer = np.empty(self.nbytes, np.uint8)
        try:
            read = self.file.read_into(buffer.data, self.offset)
        except OSError as error:
            raise ModelError(f"{error.filename}: {error.strerror}; fetch it again") from error
        if read != self.nbytes:
            raise ModelError(f"{self.files[-1]} ended while it was read; fetch it again")
        return buffer

    def read(self) -> mx.array:
        """Its values."""
        return mx.array(self.raw()).view(self.dtype).reshape(self.shape)
