"""A matrix that lies in a file as it is: 16 or 32 bits a weight, or MLX's own codes."""

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from convert.names import half_split
from convert.readers.extent import Extent
from mlx_mixtral.config import QuantSpec


@dataclass(frozen=True)
class Plain:
    """Floats. ``heads``: rows are interleaved for RoPE, in so many heads."""

    extent: Extent
    heads: int | None = None
    transposed: bool = False

    spec = None
    exact = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.extent.shape[::-1] if self.transposed else self.extent.shape

    @property
    def dtype(self) -> mx.Dtype:
        return self.extent.dtype

    @property
    def nbytes(self) -> int:
        return self.extent.nbytes

    @property
    def files(self) -> tuple[Path, ...]:
        return self.extent.files

    def read(self) -> mx.array:
        values = self.extent.read()
        values = values.T if self.transposed else values
        return half_split(values, self.heads) if self.heads else values

    def codes(self) -> tuple[mx.array, ...]:
        raise TypeError("floats have no codes")


@dataclass(frozen=True)
class Packed:
    """MLX's weight, scales and (in affine mode) biases. ``heads`` as in ``Plain``."""

    arrays: tuple[Extent, ...]
    spec: QuantSpec
    dtype: mx.Dtype
    """What ``read`` returns; the scales' own where they are floats."""
    heads: int | None = None

    exact = True

    @property
    def shape(self) -> tuple[int, ...]:
        *rows, width = self.arrays[0].shape
        return (*rows, width * 32 // self.spec.bits)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(file for array in self.arrays for file in array.files))

    def read(self) -> mx.array:
        spec = self.spec
        weight, scales, *biases = self.codes()
        values = mx.dequantize(
            weight,
            scales,
            biases[0] if biases else None,
            group_size=spec.group_size,
            bits=spec.bits,
            mode=spec.mode,
        )
        return values.astype(self.dtype)

    def codes(self) -> tuple[mx.array, ...]:
        arrays = tuple(array.read() for array in self.arrays)
        return tuple(half_split(a, self.heads) for a in arrays) if self.heads else arrays
