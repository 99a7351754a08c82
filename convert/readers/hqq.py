"""HQQ checkpoints in safetensors, as the program hqq (from 0.2 on) and transformers write them.

weight = scale x (code - zero), and zero is a float. A matrix is cut into groups after it was
reshaped: with ``axis`` 1 to [groups, size], so that a group lies in a row; with ``axis`` 0 to
[size, groups], so that it is strewn over the matrix. ``W_q`` packs rows of that shape: of a
byte that holds k codes, the highest belongs to the first kth of the rows, and so on. 3 bits
lie ten to an int32, the first ten at bit 27; rows are filled up to tens.

Every module carries its settings as tensors of its own (``nbits``, ``axis``, ``group_size``).

Format: https://github.com/mobiusml/hqq
"""

import math
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from convert.readers import Source, assemble
from convert.readers.grid import BLOCK, Coded, Floats, Grid, even, held, remarks, sound
from convert.readers.packing import Codes, pack
from convert.readers.quantized import Matrix, open_folder
from mlx_mixtral.errors import ModelError
from mlx_mixtral.weights import FLOATS

# Bits -> how many codes lie in an item, and its bytes.
_PACKING = {1: (8, 1), 2: (4, 1), 3: (10, 4), 4: (2, 1), 5: (1, 1), 6: (1, 1), 8: (1, 1)}
_KINDS = {
    "W_q", "scale", "zero", "nbits", "group_size", "shape", "axis", "packing", "view_as_float",
    "unpack_view_dtype", "compute_dtype", "quant_scale", "quant_zero", "offload_meta",
    "encoded_state_dict", "stores_quant_config", "channel_wise", "optimize", "round_zero",
}  # fmt: skip


def read_hqq(folder: Path) -> Source:
    """The model in ``folder``; headers and settings are read, and no weights.

    Raises:
        UsageError: there is no such folder.
        ModelError: its config or weights are damaged, incomplete, of another architecture or
            in another form.
    """
    opened = open_folder(folder)
    found = list(opened.named(_KINDS, _matrix))
    tensors = assemble(found, opened.config)
    coded = [named.part for named in found if isinstance(named.part, HqqMatrix)]
    if not coded:
        raise ModelError(f"{opened.path} is said to be HQQ, but none of its matrices is")
    bits = " and ".join(str(bits) for bits in sorted({part.bits for part in coded}))
    sizes = " and ".join(str(size) for size in sorted({part.size for part in coded}))
    notes = remarks(coded, max(part.size for part in coded), False, "their groups cross rows")
    form = f"HQQ, {bits} bits in groups of {sizes}"
    return Source(opened.path, opened.config, tensors, form, notes=notes)


def _matrix(source: Matrix) -> "HqqMatrix":
    """A matrix of the checkpoint, its shapes checked.

    Raises:
        ModelError: they do not fit the model or the matrix's own settings.
    """
    out, columns = source.shape
    bits, axis = _number(source, "nbits"), _number(source, "axis")
    size = _number(source, "group_size")
    if bits not in _PACKING or axis not in (0, 1) or size < 1 or out * columns % size:
        raise source.error(f"{bits} bits in groups of {size} along axis {axis} are not possible")
    for kind in ("quant_scale", "quant_zero"):
        if kind in source.arrays and _number(source, kind):
            raise source.error("its scales are quantized in turn; convert the 16-bit model instead")
    if "shape" in source.arrays:
        said = source.take("shape", (2,), (mx.int64,)).raw().view(np.int64).tolist()
        if said != [out, columns]:
            raise source.error(f"it is {said[0]} x {said[1]}, not {out} x {columns}")
    groups = out * columns // size
    shape = (groups, 1) if axis else (1, groups)
    arrays = {
        "scale": source.take("scale", shape, FLOATS),
        "zero": source.take("zero", shape, FLOATS),
    }
    if "W_q" in source.arrays:
        arrays["W_q"] = source.arrays["W_q"]
    rows_hold = held(even(columns, size)) if axis and columns % size == 0 else None
    part = HqqMatrix(source.name, (out, columns), bits, arrays, rows_hold, axis, size)
    if "W_q" not in arrays or arrays["W_q"].nbytes != part.packed_bytes:
        raise source.error(f"W_q is not the {part.packed_bytes:,} bytes that its settings ask for")
    return part


def _number(source: Matrix, kind: str) -> int:
    """One of a module's settings."""
    array = source.take(kind, (), (mx.int32, mx.uint8))
    return int.from_bytes(array.raw().tobytes(), "little")


@dataclass(frozen=True)
class HqqMatrix(Coded):
    axis: int
    size: int

    @property
    def grouped(self) -> tuple[int, int]:
        """The shape to which the matrix was cut."""
        groups = math.prod(self.shape) // self.size
        return (groups, self.size) if self.axis else (self.size, groups)

    @property
    def packed_bytes(self) -> int:
        """The size of ``W_q``."""
        rows, width = self.grouped
        count, item = _PACKING[self.bits]
        return -(-rows // count) * width * item

    def read(self) -> mx.array:
        codes, (scales, zeros) = self._codes(), self._levels()
        out = np.empty(self.grouped, np.float16)
        step = max(1, BLOCK // codes.shape[1])
        for begin in range(0, len(codes), step):
            block = slice(begin, begin + step)
            one = block if self.axis else slice(None)
            values = codes[block].astype(np.float32)
            values -= zeros[one]
            values *= scales[one]
            out[block] = values
        return mx.array(out.reshape(self.shape))

    def grid(self) -> Grid:
        rows, columns = self.shape
        scales, zeros = (values.reshape(rows, -1).T for values in self._levels())
        words = pack(self._codes().reshape(self.shape).T, self.bits)
        return Grid(words, self.bits, scales, zeros, even(columns, self.size))

    def _levels(self) -> tuple[Floats, Floats]:
        """Scales and zeros, of which nothing is too large or no number."""
        scales, zeros = self.floats("scale"), self.floats("zero")
        if not sound(scales, zeros, self.bits):
            raise self.error("its scales or zero points are no numbers, or far too large")
        return scales, zeros

    def _codes(self) -> Codes:
        """The codes in the shape to which the matrix was cut."""
        (rows, width), (count, item) = self.grouped, _PACKING[self.bits]
        raw = self.arrays["W_q"].raw()
        items = (raw.view(np.uint32) if item == 4 else raw).reshape(-1, width)
        bits = self.bits if count > 1 else 8
        codes = np.empty((count, *items.shape), np.uint8)
        for i in range(count):
            shift = (count - 1 - i) * bits
            codes[i] = (items >> items.dtype.type(shift)) & items.dtype.type((1 << bits) - 1)
        if self.bits < bits and bool((codes >> np.uint8(self.bits)).any()):
            raise self.error(f"it has codes of more than {self.bits} bits")
        return codes.reshape(-1, width)[:rows]
