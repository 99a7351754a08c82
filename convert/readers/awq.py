"""AWQ checkpoints, as AutoAWQ writes them, of its versions ``gemm`` and ``gemv``.

weight = scale x (code - zero), 4 bits. ``gemm`` keeps a matrix [out, in] as ``qweight`` int32
[in, out/8], ``qzeros`` int32 [G, out/8] (for the order of codes in a word see ``packing``) and
``scales`` [G, out]; ``gemv`` as ``qweight`` [out, in/8], ``qzeros`` [out, Z] and ``scales``
[out, 8 Z], codes in order and rows filled up with nothing to Z words.

Format: https://github.com/casper-hansen/AutoAWQ
"""

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from convert.readers import Source, assemble
from convert.readers.grid import Coded, Grid, even, held, remarks
from convert.readers.packing import AWQ_ORDER, Codes, awq_to_gptq, unpack
from convert.readers.quantized import Folder, Matrix, open_folder
from mlx_mixtral.errors import ModelError
from mlx_mixtral.weights import FLOATS

_KINDS = {"qweight", "qzeros", "scales"}


def read_awq(folder: Path) -> Source:
    """The model in ``folder``; headers are read, and no weights.

    Raises:
        UsageError: there is no such folder.
        ModelError: its config or weights are damaged, incomplete, of another architecture or
            in another form.
    """
    opened = open_folder(folder)
    layout = _layout(opened)
    found = list(opened.named(_KINDS, layout.matrix))
    tensors = assemble(found, opened.config)
    coded = [named.part for named in found if isinstance(named.part, Coded)]
    if not coded:
        raise ModelError(f"{opened.path} is said to be AWQ, but none of its matrices is")
    groups = f"groups of {layout.width}" if layout.width > 0 else "whole rows"
    notes = remarks(coded, layout.width, symmetric=False)
    return Source(opened.path, opened.config, tensors, f"AWQ, 4 bits in {groups}", notes=notes)


@dataclass(frozen=True)
class Layout:
    """What the settings say of all matrices."""

    width: int
    """Columns to a group; -1: the whole row."""
    gemv: bool

    def matrix(self, source: Matrix) -> "AwqMatrix":
        """A matrix of the checkpoint, its shapes checked.

        Raises:
            ModelError: they do not fit the model or these settings.
        """
        out, columns = source.shape
        width = self.width if self.width > 0 else columns
        if columns % width or columns % 8 or out % 8:
            raise source.error(f"groups of {width} do not divide {out} x {columns}")
        groups = columns // width
        words = -(-groups // 8)
        if self.gemv:
            # Rows of zero points are filled up so that a row takes 4 words for every 128 columns.
            fill = {32: 4, 64: 2}.get(width, 1)
            words = -(-words // fill) * fill
            shapes = (out, columns // 8), (out, words), (out, 8 * words)
        else:
            shapes = (columns, out // 8), (groups, out // 8), (groups, out)
        arrays = {
            "qweight": source.take("qweight", shapes[0], (mx.int32,)),
            "qzeros": source.take("qzeros", shapes[1], (mx.int32,)),
            "scales": source.take("scales", shapes[2], FLOATS),
        }
        fits = held(even(columns, width))
        return AwqMatrix(source.name, (out, columns), 4, arrays, fits, self.gemv, width)


@dataclass(frozen=True)
class AwqMatrix(Coded):
    gemv: bool
    width: int

    def grid(self) -> Grid:
        words, scales = self.words("qweight"), self.floats("scales")
        zeros = unpack(self.words("qzeros").T, 4)
        if self.gemv:
            groups = self.shape[1] // self.width
            words, scales, zeros = words.T, scales.T[:groups], zeros[:groups]
        else:
            words, zeros = awq_to_gptq(words), _in_order(zeros).T
        return Grid(words, 4, scales, zeros.astype(np.float32), even(self.shape[1], self.width))


def _in_order(codes: Codes) -> Codes:
    """The rows of unpacked ``gemm`` words in the order of the columns they stand for."""
    words = codes.reshape(-1, 8, codes.shape[1])
    ordered = np.empty_like(words)
    ordered[:, AWQ_ORDER] = words
    return ordered.reshape(codes.shape)


def _layout(opened: Folder) -> Layout:
    """What the settings say.

    Raises:
        ModelError: bits, groups or a version that this reader does not know.
    """
    version = str(opened.setting("version", "checkpoint_format", "format", default="gemm")).lower()
    bits = opened.integer("bits", "w_bit", default=4)
    width = opened.integer("group_size", "q_group_size", default=128)
    if version not in ("gemm", "gemv"):
        raise ModelError(
            f"{opened.path} is AWQ packed for {version!r}; convert one packed for gemm, "
            f"or the 16-bit model"
        )
    if bits != 4 or (width < 1 and width != -1):
        raise ModelError(
            f"{opened.path}: AWQ with {bits} bits in groups of {width} is not possible; "
            f"fetch its config.json again"
        )
    return Layout(width, version == "gemv")
