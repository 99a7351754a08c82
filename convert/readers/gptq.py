"""GPTQ checkpoints, as AutoGPTQ and its successor GPTQModel write them.

A matrix [out, in] is ``qweight`` int32 [in * bits/32, out] (see ``packing``), ``scales`` [G, out],
``qzeros`` int32 [G, out * bits/32] packed along ``out``, and ``g_idx`` int32 [in], which names
the group of each column. weight = scale x (code - zero), and ``qzeros`` holds zero - 1, or in
checkpoints of format ``gptq_v2`` zero itself.

Format: https://github.com/AutoGPTQ/AutoGPTQ, https://github.com/ModelCloud/GPTQModel
"""

from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from convert.readers import Source, assemble
from convert.readers.grid import Coded, Floats, Grid, Indices, even, held, remarks
from convert.readers.packing import run, unpack
from convert.readers.quantized import Folder, Matrix, open_folder
from mlx_mixtral.errors import ModelError
from mlx_mixtral.weights import FLOATS

BITS = (2, 3, 4, 8)
_KINDS = {"qweight", "qzeros", "scales", "g_idx"}


def read_gptq(folder: Path) -> Source:
    """The model in ``folder``; headers are read, the order of columns, and no weights.

    Raises:
        UsageError: there is no such folder.
        ModelError: its config or weights are damaged, incomplete, of another architecture or
            in another form.
    """
    opened = open_folder(folder)
    layout, notes = _settled(opened)
    found = list(opened.named(_KINDS, layout.matrix))
    tensors = assemble(found, opened.config)
    coded = [named.part for named in found if isinstance(named.part, Coded)]
    bits = " and ".join(str(bits) for bits in sorted({part.bits for part in coded}))
    form = f"GPTQ, {bits} bits in " + (
        f"groups of {layout.width}" if layout.width > 0 else "whole rows"
    )
    notes += remarks(coded, layout.width, layout.symmetric)
    return Source(opened.path, opened.config, tensors, form, notes=notes)


@dataclass(frozen=True)
class Layout:
    """What the settings say of all matrices."""

    bits: int
    width: int
    """Columns to a group; -1: the whole row."""
    mixed: bool
    """Whether single matrices may differ."""
    less_one: bool
    """Whether ``qzeros`` hold zero - 1."""
    carries: bool
    """Whether 1 was subtracted from whole words: a zero of 0 borrowed from the one above."""
    symmetric: bool = False

    def matrix(self, source: Matrix) -> "GptqMatrix":
        """A matrix of the checkpoint, its shapes checked.

        Raises:
            ModelError: they do not fit the model or these settings.
        """
        out, columns = source.shape
        bits = self._bits(source, columns)
        count, length = run(bits)
        if columns % count or out % count:
            raise source.error(f"{bits}-bit codes of {out} x {columns} do not fill 32-bit words")
        groups = source.arrays["scales"].shape[0] if _two(source, "scales") else 0
        if not 1 <= groups <= columns:
            raise source.error("scales are missing or of a wrong shape; fetch it again")
        arrays = {
            "qweight": source.take("qweight", (columns // count * length, out), (mx.int32,)),
            "qzeros": source.take("qzeros", (groups, out // count * length), (mx.int32,)),
            "scales": source.take("scales", (groups, out), FLOATS),
        }
        if "g_idx" in source.arrays:
            arrays["g_idx"] = source.take("g_idx", (columns,), (mx.int32,))
        elif groups != self._groups(columns) and (not self.mixed or columns % groups):
            raise source.error(
                f"{groups} groups in {columns} columns are not what config.json says"
            )
        part = GptqMatrix(source.name, (out, columns), bits, arrays, None, self)
        return replace(part, held=held(part.groups()))

    def even(self, columns: int, groups: int) -> Indices:
        """The groups of columns that are in order."""
        width = self.width if groups == self._groups(columns) else columns // groups
        return even(columns, width if width > 0 else columns)

    def _bits(self, source: Matrix, columns: int) -> int:
        """The settings' own, or where matrices differ those that the shape tells."""
        rows = source.arrays["qweight"].shape[0] if _two(source, "qweight") else 0
        bits = rows * 32 // columns if self.mixed else self.bits
        if bits not in BITS:
            raise source.error(f"qweight cannot be read: its shape says {bits} bits")
        return bits

    def _groups(self, columns: int) -> int:
        return -(-columns // self.width) if self.width > 0 else 1


def _two(source: Matrix, kind: str) -> bool:
    return kind in source.arrays and len(source.arrays[kind].shape) == 2


@dataclass(frozen=True)
class GptqMatrix(Coded):
    layout: Layout

    def groups(self) -> Indices:
        """The group of each column.

        Raises:
            ModelError: ``g_idx`` names a group that is not there.
        """
        columns, count = self.shape[1], self.arrays["scales"].shape[0]
        if (extent := self.arrays.get("g_idx")) is None:
            return self.layout.even(columns, count)
        groups: Indices = extent.raw().view(np.int32)
        if not 0 <= groups.min() <= groups.max() < count:
            least, most = int(groups.min()), int(groups.max())
            raise self.error(f"g_idx names groups {least} to {most} of {count}")
        return groups

    def zeros(self) -> Floats:
        """The zero points [G, out]: 0 to 2^bits - 1, for 0 - 1 was stored as the largest code."""
        words, layout, bits = self.words("qzeros"), self.layout, self.bits
        if layout.less_one and layout.carries and 32 % bits == 0:
            words = words + np.uint32((1 << 32) // ((1 << bits) - 1))  # 1 in each place
            return unpack(words.T, bits).T.astype(np.float32)
        codes = unpack(words.T, bits).T
        if layout.less_one:
            codes = (codes + np.uint8(1)) & np.uint8((1 << bits) - 1)
        return codes.astype(np.float32)

    def grid(self) -> Grid:
        return Grid(
            self.words("qweight"), self.bits, self.floats("scales"), self.zeros(), self.groups()
        )


def _layout(opened: Folder) -> Layout:
    """What the settings say.

    Raises:
        ModelError: bits, groups or a format that this reader does not know.
    """
    form = str(opened.setting("checkpoint_format", "format", default="gptq")).lower()
    if form not in ("gptq", "gptq_v2") or opened.setting("is_marlin_format"):
        name = "marlin" if form == "gptq" else form
        raise ModelError(
            f"{opened.path} is GPTQ packed for {name!r}; convert the plain GPTQ or the 16-bit model"
        )
    bits = opened.integer("bits", "w_bit", default=4)
    width = opened.integer("group_size", "q_group_size", default=-1)
    if bits not in BITS or (width < 1 and width != -1):
        raise ModelError(
            f"{opened.path}: GPTQ with {bits} bits in groups of {width} is not possible; "
            f"fetch its config.json again"
        )
    meta = opened.setting("meta")
    made_by = str(meta.get("quantizer")) if isinstance(meta, dict) else ""
    mixed = bool(opened.setting("dynamic"))
    return Layout(bits, width, mixed, form == "gptq", "gptqmodel" in made_by.lower())


def _settled(opened: Folder) -> tuple[Layout, tuple[str, ...]]:
    """The layout, compared with the zero points of one matrix.

    Symmetric codes have theirs in the middle, which tells the two ways to store them apart.
    """
    layout = _layout(opened)
    first = next((m for m in opened.matrices if m.shape and m.arrays.keys() & _KINDS), None)
    if first is None:
        raise ModelError(f"{opened.path} is said to be GPTQ, but none of its matrices is")
    sym = opened.setting("sym")
    if layout.mixed or sym is False:
        return layout, ()
    if _is_symmetric(layout.matrix(first)):
        return replace(layout, symmetric=True), ()
    if sym is not True:
        return layout, ()
    other = replace(layout, less_one=not layout.less_one, symmetric=True)
    if _is_symmetric(other.matrix(first)):
        stored = "less 1" if other.less_one else "as they are"
        return other, (f"Zero points are stored {stored}, against what config.json says.",)
    raise first.error(
        'the zero points are not in the middle, as "sym": true in the settings would have it; '
        "if it was quantized without sym, set false there"
    )


def _is_symmetric(part: GptqMatrix) -> bool:
    return bool((part.zeros() == 1 << part.bits - 1).all())
