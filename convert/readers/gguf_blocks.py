"""The types of tensors in GGUF files, and what MLX makes of them.

A row of a quantized matrix is a sequence of blocks, each with codes and scales of its own.
The types whose groups have 32 weights (and 4, 5 or 8 bits) keep their codes: MLX's affine
format computes the same ``scale * code + bias``. All others are turned into floats by the
``gguf`` package. Layouts: ggml's ``ggml-common.h`` and ``ggml-quants.c``.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

from convert.names import half_split
from convert.readers.extent import Extent
from mlx_mixtral.config import QuantSpec
from mlx_mixtral.errors import ModelError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Unpacked: TypeAlias = tuple[Array, ...]
"""Codes [blocks, weights] in uint8; scales, and in affine mode biases, [blocks, groups]."""

_WEIGHTS_AT_ONCE = 1 << 20
_LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Kind:
    """A type of tensor: ``block`` weights in ``size`` bytes."""

    name: str
    block: int
    size: int
    dtype: mx.Dtype = mx.float16
    """What reading it gives."""
    spec: QuantSpec | None = None
    """MLX's format for its codes, if there is one."""
    unpack: Callable[[Array], Unpacked] | None = None
    """Blocks [blocks, size] to codes, scales and biases; where there is a ``spec``."""
    bits: int = 0
    """Where there is none, the bits that hold its values at no real loss."""

    def spec_for(self, width: int) -> QuantSpec:
        """How MLX stores rows of ``width`` weights."""
        return self.spec or QuantSpec(self.bits, 32 if width % 64 else 64)


# --- blocks to codes, scales and biases


def _half(field: Array) -> Array:
    return field.view("<f2").astype(np.float32)


def _nibbles(field: Array) -> Array:
    """The low halves of the bytes of each row, then the high halves."""
    codes = np.empty((len(field), 2, field.shape[1]), np.uint8)
    np.bitwise_and(field, 15, out=codes[:, 0])
    np.right_shift(field, 4, out=codes[:, 1])
    return codes.reshape(len(field), -1)


def _q4_0(block: Array) -> Unpacked:
    scale = _half(block[:, :2])
    return _nibbles(block[:, 2:]), scale, scale * -8


def _q4_1(block: Array) -> Unpacked:
    return _nibbles(block[:, 4:]), _half(block[:, :2]), _half(block[:, 2:4])


def _fifth_bits(field: Array) -> Array:
    return np.unpackbits(field, axis=1, bitorder="little") << 4


def _q5_0(block: Array) -> Unpacked:
    scale = _half(block[:, :2])
    return _nibbles(block[:, 6:]) | _fifth_bits(block[:, 2:6]), scale, scale * -16


def _q5_1(block: Array) -> Unpacked:
    codes = _nibbles(block[:, 8:]) | _fifth_bits(block[:, 4:8])
    return codes, _half(block[:, :2]), _half(block[:, 2:4])


def _q8_0(block: Array) -> Unpacked:
    scale = _half(block[:, :2])
    return block[:, 2:] ^ 0x80, scale, scale * -128  # the sign bit flipped adds 128


def _k_scales(block: Array) -> tuple[Array, Array]:
    """Scales and biases of eight groups: two float16, and 12 bytes of 6-bit factors.

    The factors of the first four groups are the low 6 bits of bytes 0-3 (scales) and 4-7
    (minima). Those of the last four have their low 4 bits in bytes 8-11, and the high 2 in
    the top of the first eight.
    """
    first, second, third = (block[:, 4 + 4 * i : 8 + 4 * i] for i in range(3))
    scales = np.hstack([first & 63, third & 15 | first >> 6 << 4])
    minima = np.hstack([second & 63, third >> 4 | second >> 6 << 4])
    return _half(block[:, :2]) * scales, _half(block[:, 2:4]) * -minima.astype(np.float32)


def _k_nibbles(field: Array) -> Array:
    """32 bytes hold one group in their low halves, the next in the high ones."""
    return _nibbles(field.reshape(-1, 32)).reshape(len(field), 256)


def _q4_k(block: Array) -> Unpacked:
    return _k_nibbles(block[:, 16:]), *_k_scales(block)


def _q5_k(block: Array) -> Unpacked:
    fifth = block[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes = _k_nibbles(block[:, 48:]) | (fifth << 4).reshape(-1, 256)
    return codes, *_k_scales(block)


def _mxfp4(block: Array) -> Unpacked:
    # Exponents from here on make numbers past float16, the last of them no numbers at all.
    if block[:, 0].max() > 127 + 13:
        raise OverflowError
    return _nibbles(block[:, 1:]), block[:, :1]


def _nvfp4(block: Array) -> Unpacked:
    # Four groups of 16. Scales have no sign, and 0x7F is no number.
    if block[:, :4].max() > 0x7E:
        raise OverflowError
    return _nibbles(block[:, 4:].reshape(-1, 8)).reshape(-1, 64), block[:, :4]


_AFFINE_4, _AFFINE_5, _AFFINE_8 = (QuantSpec(bits, 32) for bits in (4, 5, 8))

KINDS = {
    0: Kind("F32", 1, 4, mx.float32),
    1: Kind("F16", 1, 2, mx.float16),
    30: Kind("BF16", 1, 2, mx.bfloat16),
    2: Kind("Q4_0", 32, 18, mx.float16, _AFFINE_4, _q4_0),
    3: Kind("Q4_1", 32, 20, mx.float16, _AFFINE_4, _q4_1),
    6: Kind("Q5_0", 32, 22, mx.float16, _AFFINE_5, _q5_0),
    7: Kind("Q5_1", 32, 24, mx.float16, _AFFINE_5, _q5_1),
    8: Kind("Q8_0", 32, 34, mx.float16, _AFFINE_8, _q8_0),
    12: Kind("Q4_K", 256, 144, mx.float16, _AFFINE_4, _q4_k),
    13: Kind("Q5_K", 256, 176, mx.float16, _AFFINE_5, _q5_k),
    39: Kind("MXFP4", 32, 17, mx.float16, QuantSpec(4, 32, "mxfp4"), _mxfp4),
    40: Kind("NVFP4", 64, 36, mx.float16, QuantSpec(4, 16, "nvfp4"), _nvfp4),
    # Groups of 16, or steps of unequal size.
    10: Kind("Q2_K", 256, 84, bits=4),
    11: Kind("Q3_K", 256, 110, bits=5),
    14: Kind("Q6_K", 256, 210, bits=8),
    16: Kind("IQ2_XXS", 256, 66, bits=4),
    17: Kind("IQ2_XS", 256, 74, bits=4),
    18: Kind("IQ3_XXS", 256, 98, bits=5),
    19: Kind("IQ1_S", 256, 50, bits=4),
    20: Kind("IQ4_NL", 32, 18, bits=6),
    21: Kind("IQ3_S", 256, 110, bits=5),
    22: Kind("IQ2_S", 256, 82, bits=4),
    23: Kind("IQ4_XS", 256, 136, bits=6),
    29: Kind("IQ1_M", 256, 56, bits=4),
    34: Kind("TQ1_0", 256, 54, bits=4),
    35: Kind("TQ2_0", 256, 66, bits=4),
}
"""By the number that stands for it in a file."""


def kind_name(number: int) -> str:
    """ggml's name of a type that is not in ``KINDS``, or its number."""
    from gguf import GGMLQuantizationType

    known = {int(kind): kind.name for kind in GGMLQuantizationType}
    return known.get(number, str(number))


# --- one matrix


@dataclass(frozen=True)
class Blocks:
    """A quantized matrix. ``heads``: rows are interleaved for RoPE, in so many heads."""

    extent: Extent
    """Bytes, [out, bytes of a row]."""
    kind: Kind
    name: str
    """As the file has it, for errors."""
    heads: int | None = None

    dtype = mx.float16

    @property
    def shape(self) -> tuple[int, ...]:
        *rows, size = self.extent.shape
        return (*rows, size // self.kind.size * self.kind.block)

    @property
    def nbytes(self) -> int:
        return self.extent.nbytes

    @property
    def files(self) -> tuple[Path, ...]:
        return self.extent.files

    @property
    def spec(self) -> QuantSpec | None:
        return self.kind.spec_for(self.shape[-1]) if len(self.shape) > 1 else None

    @property
    def exact(self) -> bool:
        return self.spec is not None and self.spec == self.kind.spec

    def read(self) -> mx.array:
        values = np.empty(math.prod(self.shape), np.float16)
        begin = 0
        for blocks in self._pieces():
            piece = self._halves(self._floats(blocks)).reshape(-1)
            values[begin : begin + piece.size] = piece
            begin += piece.size
        return self._ordered(values.reshape(self.shape))

    def codes(self) -> tuple[mx.array, ...]:
        bits = self.kind.spec_for(self.shape[-1]).bits
        pieces = [self._encoded(blocks, bits) for blocks in self._pieces()]
        weight, *scales = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        return tuple(self._ordered(a.reshape(self.shape[0], -1)) for a in (weight, *scales))

    def _pieces(self) -> Iterator[Array]:
        """Some rows at a time: their blocks [n, bytes]."""
        rows, size = math.prod(self.shape[:-1]), self.extent.shape[-1]
        matrix = Extent(self.extent.file, self.extent.offset, (rows, size), mx.uint8)
        step = max(1, _WEIGHTS_AT_ONCE // self.shape[-1])
        for begin in range(0, rows, step):
            some = matrix.rows(begin, min(begin + step, rows))
            yield some.raw().reshape(-1, self.kind.size)

    @np.errstate(all="ignore")
    def _floats(self, blocks: Array) -> Array:
        if self.kind.unpack:
            codes, *found = self._unpacked(blocks)
            if len(found) == 2:  # affine: this is faster than the package
                scales, biases = (array[..., None] for array in found)
                values: Array = codes.reshape(*scales.shape[:-1], -1).astype(np.float32)
                values *= scales
                values += biases
                return values
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        rows = blocks.reshape(-1, self.extent.shape[-1])  # it takes 16 rows at a time
        values = dequantize(rows, GGMLQuantizationType[self.kind.name])
        return values

    @np.errstate(all="ignore")
    def _encoded(self, blocks: Array, bits: int) -> list[Array]:
        """Flat arrays: the codes packed to words; scales; biases."""
        codes, *found = self._unpacked(blocks)
        scales = (a if a.dtype == np.uint8 else self._halves(a) for a in found)
        return [_packed(codes, bits).reshape(-1), *(array.reshape(-1) for array in scales)]

    def _unpacked(self, blocks: Array) -> Unpacked:
        if self.kind.unpack is None:
            raise TypeError(f"MLX has no format for the codes of {self.kind.name}")
        try:
            return self.kind.unpack(blocks)
        except OverflowError:
            raise self._unsound() from None

    def _halves(self, values: Array) -> Array:
        if not max(-values.min(), values.max()) <= _LARGEST_HALF:  # true of NaN, too
            raise self._unsound()
        return values.astype(np.float16)

    def _ordered(self, array: Array) -> mx.array:
        rows = mx.array(array)
        return half_split(rows, self.heads) if self.heads else rows

    def _unsound(self) -> ModelError:
        return ModelError(
            f"{self.files[0]}: {self.name} ({self.kind.name}) holds numbers that float16 cannot "
            f"hold and no weight is; fetch it again"
        )


def _packed(codes: Array, bits: int) -> Array:
    """Codes [n, 32 * k] to 32-bit words, ``bits`` a code, the first in the lowest bits.

    Neighbours are joined to pairs, pairs to fours, fours to eights of 8 * ``bits`` bits.
    """
    if bits == 8:
        return codes.view(np.uint32)
    lanes = codes.reshape(-1)
    for step, kind in enumerate((np.uint16, np.uint32, np.uint64)):
        lanes = lanes.view(kind)
        upper = lanes >> kind(8 << step)
        upper <<= kind(bits << step)
        lanes = lanes & kind((1 << (8 << step)) - 1)
        lanes |= upper
    if bits == 4:
        return lanes.astype(np.uint32)
    a, b, c, d = lanes.reshape(-1, 4).T  # 4 x 40 bits fill 5 words
    words = np.empty((len(a), 5), np.uint32)
    for i, word in enumerate((a, a >> 32 | b << 8, b >> 24 | c << 16, c >> 16 | d << 24, d >> 8)):
        words[:, i] = word
    return words
