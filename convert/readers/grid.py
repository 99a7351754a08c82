"""A matrix of integer codes on a grid: weight = scale x (code - zero), each group its own scale."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from convert.readers.extent import Extent
from convert.readers.packing import Words, run, unpack
from mlx_mixtral.config import QuantSpec
from mlx_mixtral.errors import ModelError

Floats = NDArray[np.float32]
Indices = NDArray[np.int32]

GROUPS = (128, 64, 32)
"""MLX's group sizes, the one that takes the least room first."""

BLOCK = 1 << 18  # weights that are dequantized at a time
_LARGEST = 65504.0  # of float16

_WIDER = {1: 3, 2: 4, 3: 5, 4: 6, 5: 8, 6: 8, 8: 8}
"""Bits for codes that are quantized a second time, which then costs a quarter of the first."""


@dataclass(frozen=True)
class Grid:
    """A matrix [out, in], transposed: every column of these arrays is a row of the matrix."""

    words: Words
    """[in * bits/32, out], see ``packing``."""
    bits: int
    scales: Floats
    """[groups, out]"""
    zeros: Floats
    """[groups, out]"""
    groups: Indices
    """[in]: the group of each column of the matrix."""

    def packed(self, size: int) -> tuple[mx.array, mx.array, mx.array]:
        """MLX's weight, scales and biases in groups of ``size``, which ``held`` gave.

        A bias, -zero x scale, is rounded to float16.
        """
        scales = self.scales.astype(np.float16)
        biases = (-self.zeros * scales.astype(np.float32)).astype(np.float16)
        order = self.groups[::size]
        arrays = (self.words, scales[order], biases[order])
        return tuple(mx.array(np.ascontiguousarray(array.T)) for array in arrays)  # type: ignore[return-value]

    def values(self) -> mx.array:
        """The weights [out, in] in float16, each rounded once."""
        width, columns = self.words.shape[1], len(self.groups)
        count, length = run(self.bits)
        runs = max(1, BLOCK // (count * width))
        out = np.empty((width, columns), np.float16)
        for begin in range(0, columns, runs * count):
            end = min(columns, begin + runs * count)
            words = self.words[begin // count * length : end // count * length]
            groups = self.groups[begin:end]
            values = unpack(words, self.bits).astype(np.float32)
            values -= self.zeros[groups]
            values *= self.scales[groups]
            out[:, begin:end] = values.astype(np.float16).T
        return mx.array(out)


def sound(scales: Floats, zeros: Floats, bits: int) -> bool:
    """Whether all of them are numbers, and no weight on the grid is too large for float16."""
    with np.errstate(all="ignore"):
        reach = np.abs(scales) * (np.abs(zeros) + (1 << bits))
    return bool((reach < _LARGEST).all())


def held(groups: Indices) -> int | None:
    """The largest of MLX's group sizes in which all columns of a group share theirs, or None."""
    for size in GROUPS:
        if len(groups) % size == 0:
            blocks = groups.reshape(-1, size)
            if bool((blocks == blocks[:, :1]).all()):
                return size
    return None


def even(columns: int, size: int) -> Indices:
    """Groups of ``size`` columns, in order."""
    return np.arange(columns, dtype=np.int32) // np.int32(min(size, columns))


@dataclass(frozen=True)
class Coded(ABC):
    """A matrix of a quantized checkpoint. Subclasses know how its arrays become a ``Grid``."""

    name: str
    """What the checkpoint calls it."""
    shape: tuple[int, int]
    bits: int
    arrays: Mapping[str, Extent]
    held: int | None
    """The size of MLX's groups, where its codes can be kept."""

    dtype = mx.float16

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def files(self) -> tuple[Path, ...]:
        files = (file for array in self.arrays.values() for file in array.files)
        return tuple(dict.fromkeys(files))

    @property
    def exact(self) -> bool:
        return self.held is not None

    @property
    def spec(self) -> QuantSpec | None:
        if self.held:
            return QuantSpec(self.bits, self.held)
        size = next((size for size in (64, 32) if self.shape[1] % size == 0), None)
        return QuantSpec(_WIDER[self.bits], size) if size else None

    @abstractmethod
    def grid(self) -> Grid:
        """Its arrays, read."""

    def read(self) -> mx.array:
        return self._checked().values()

    def codes(self) -> tuple[mx.array, ...]:
        if self.held is None:
            raise TypeError("MLX has no groups like these")
        return self._checked().packed(self.held)

    def _checked(self) -> Grid:
        grid = self.grid()
        if not sound(grid.scales, grid.zeros, grid.bits):
            raise self.error("its scales or zero points are no numbers, or far too large")
        return grid

    def error(self, problem: str) -> ModelError:
        return ModelError(f"{self.files[0].name}: {self.name}: {problem}; fetch it again")

    def words(self, kind: str) -> Words:
        """One of its arrays of 32-bit words."""
        return self.arrays[kind].raw().view(np.uint32).reshape(self.arrays[kind].shape)

    def floats(self, kind: str) -> Floats:
        """One of its arrays of floats."""
        return np.array(self.arrays[kind].read().astype(mx.float32))


def remarks(
    coded: Sequence[Coded],
    width: int,
    symmetric: bool,
    why: str = "their columns are in the order of activation",
) -> tuple[str, ...]:
    """What a person should know of a model of these matrices, in groups of ``width`` (-1: rows).

    ``symmetric``: all zero points are powers of 2. ``why`` codes cannot be kept, if some cannot.
    """
    notes = []
    if again := [part for part in coded if part.held is None]:
        if 0 < width < min(GROUPS):
            why = f"MLX has no groups of {width}"
        specs = sorted({f"{part.spec.bits} bits" for part in again if part.spec})
        notes.append(
            f"{len(again)} of {len(coded)} matrices cannot keep their codes, for {why}; they are "
            f"quantized a second time, at {' and '.join(specs) or 'no fewer than 16 bits'}."
        )
    if (kept := [part for part in coded if part.held]) and not symmetric:
        bits = max(part.bits for part in kept)
        notes.append(
            f"MLX keeps -zero x scale in float16; the rounding moves weights by up to "
            f"1/{2 ** (11 - bits)} of a step between two codes."
        )
    if wide := {part.held for part in kept if part.held and not 0 < width <= part.held}:
        groups = f"groups of {width}" if width > 0 else "whole rows"
        notes.append(f"Scales of {groups} are repeated for MLX's groups of {max(wide)}.")
    kinds = {
        array.dtype
        for part in coded
        for kind, array in part.arrays.items()
        if kind in ("scales", "scale")
    }
    if kinds - {mx.float16}:
        notes.append("Scales are not float16 but rounded to it, by at most 1/2048 of each.")
    return tuple(notes)
