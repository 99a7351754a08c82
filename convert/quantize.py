"""One matrix to MLX's affine format: codes, and a scale and a bias for each group of a row.

Format: https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html
"""

from typing import Any, Literal

import mlx.core as mx
import numpy as np

from convert.affine import fit
from convert.readers.grid import Floats
from convert.readers.packing import Codes, pack
from convert.writer import Slot
from mlx_mixtral.config import QuantSpec
from mlx_mixtral.weights import packed_kinds, packed_shapes

Effort = Literal["fast", "better", "best"]
"""fast: min and max of a group give its scale, as ``mx.quantize`` has it; better: the scale that
loses least (see ``convert.affine``); best: the loss is measured on what a text makes of the
inputs (see ``convert.calibration``)."""

_DTYPES = {
    mx.float32: "F32",
    mx.bfloat16: "BF16",
    mx.float16: "F16",
    mx.uint32: "U32",
    mx.uint8: "U8",
}
_ROWS_ON_CPU, _ROWS_ON_GPU = 1 << 22, 1 << 24
"""Weights of the rows that are worked on together."""
_IN_CACHE = 1 << 18
"""Weights at a time, so that a processor's cache holds them."""


def slots(name: str, shape: tuple[int, ...], dtype: mx.Dtype, spec: QuantSpec | None) -> list[Slot]:
    """What a weight of ``shape`` becomes on disk, in ``dtype`` or with scales in it."""
    if spec is None:
        return [Slot(name, _DTYPES[dtype], shape)]
    path, kinds = name.removesuffix(".weight"), packed_kinds(spec)
    return [
        Slot(f"{path}.{kind}", _DTYPES[dtype if dtype in kinds[kind] else kinds[kind][0]], packed)
        for kind, packed in packed_shapes(shape, spec).items()
    ]


def quantize(
    weight: mx.array, dtype: mx.Dtype, spec: QuantSpec | None, effort: Effort = "fast"
) -> tuple[mx.array, ...]:
    """The arrays for the ``slots`` of a weight, or of one expert's slice of it, evaluated.

    Without calibration the best that can be done is ``better``. Formats other than affine have
    one way only.
    """
    weight = weight.astype(dtype)
    if spec is None:
        arrays: tuple[mx.array, ...] = (weight,)
    elif effort == "fast" or spec.mode != "affine":
        arrays = tuple(mx.quantize(weight, spec.group_size, spec.bits, spec.mode))
    else:
        arrays = _better(weight, spec)
    mx.eval(arrays)
    return arrays


def dequantize(arrays: tuple[mx.array, ...], spec: QuantSpec | None) -> mx.array:
    """What ``quantize`` gave, as float32 weights, evaluated.

    Scales and biases are widened first, as MLX's kernels do when they multiply.
    """
    weight, *rest = arrays
    if spec is None:
        values = weight.astype(mx.float32)
    elif spec.mode == "affine":
        scales, biases = (array.astype(mx.float32) for array in rest)
        values = mx.dequantize(weight, scales, biases, spec.group_size, spec.bits)
    else:
        values = mx.dequantize(weight, rest[0], None, spec.group_size, spec.bits, spec.mode)
        values = values.astype(mx.float32)
    mx.eval(values)
    return values


def raw(array: mx.array) -> memoryview:
    """The bytes of an evaluated array, row by row."""
    return np.asarray(mx.contiguous(array).view(mx.uint8)).data.cast("B")


def packed(
    codes: Codes, scales: Floats, biases: Floats, spec: QuantSpec, dtype: mx.Dtype
) -> tuple[mx.array, ...]:
    """MLX's arrays for codes [in, out], scales and biases [groups, out]."""
    words = mx.array(np.ascontiguousarray(pack(codes, spec.bits).T))
    rest = (mx.array(np.ascontiguousarray(array.T)) for array in (scales, biases))
    return words, *(array.astype(dtype) for array in rest)


def cooked(data: bytes, slot: Slot) -> mx.array:
    """The numbers, in one row, whose ``raw`` bytes in ``slot`` are ``data``."""
    [dtype] = [dtype for dtype, name in _DTYPES.items() if name == slot.dtype]
    return mx.array(np.frombuffer(data, np.uint8)).view(dtype)


def _better(weight: mx.array, spec: QuantSpec) -> tuple[mx.array, ...]:
    """Some rows at a time: in MLX on a GPU, in NumPy on a CPU, where it is twice as fast."""
    on_gpu = mx.default_device() == mx.Device(mx.gpu)
    rows = max(1, (_ROWS_ON_GPU if on_gpu else _ROWS_ON_CPU) // weight.shape[1])
    with np.errstate(all="ignore"):  # what overflows loses against what MLX does
        made = [
            _better_rows(mx if on_gpu else np, weight[at : at + rows], spec)
            for at in range(0, weight.shape[0], rows)
        ]
    return tuple(mx.concatenate(list(arrays)) for arrays in zip(*made, strict=True))


def _better_rows(xp: Any, rows: mx.array, spec: QuantSpec) -> tuple[mx.array, ...]:
    def columns(array: mx.array) -> Any:
        wide = array.astype(mx.float32)
        return wide.T if xp is mx else np.ascontiguousarray(np.asarray(wide).T)

    _, *known = mx.quantize(rows, spec.group_size, spec.bits)
    scales, biases = (columns(array)[:, None] for array in known)
    weights = columns(rows).reshape(-1, spec.group_size, len(rows))
    step = len(weights) if xp is mx else max(1, _IN_CACHE // weights[0].size)
    fits = []
    for at in range(0, len(weights), step):
        part = slice(at, at + step)
        found = fit(xp, weights[part], spec.bits, rows.dtype, (scales[part], biases[part]), None)
        fits.append([np.asarray(array) for array in found])
    codes, scales, biases = (np.concatenate(arrays) for arrays in zip(*fits, strict=True))
    codes = codes.reshape(-1, len(rows)).astype(np.uint8)
    return packed(codes, scales[:, 0], biases[:, 0], spec, rows.dtype)
