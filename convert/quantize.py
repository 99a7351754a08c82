"""One matrix to MLX's affine format: codes, and a scale and a bias for each group of a row.

Format: https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html
"""

import mlx.core as mx
import numpy as np

from convert.writer import Slot
from mlx_mixtral.config import QuantSpec
from mlx_mixtral.weights import packed_kinds, packed_shapes

_DTYPES = {
    mx.float32: "F32",
    mx.bfloat16: "BF16",
    mx.float16: "F16",
    mx.uint32: "U32",
    mx.uint8: "U8",
}


def slots(name: str, shape: tuple[int, ...], dtype: mx.Dtype, spec: QuantSpec | None) -> list[Slot]:
    """What a weight of ``shape`` becomes on disk, in ``dtype`` or with scales in it."""
    if spec is None:
        return [Slot(name, _DTYPES[dtype], shape)]
    path, kinds = name.removesuffix(".weight"), packed_kinds(spec)
    return [
        Slot(f"{path}.{kind}", _DTYPES[dtype if dtype in kinds[kind] else kinds[kind][0]], packed)
        for kind, packed in packed_shapes(shape, spec).items()
    ]


def quantize(weight: mx.array, dtype: mx.Dtype, spec: QuantSpec | None) -> tuple[mx.array, ...]:
    """The arrays for the ``slots`` of a weight, or of one expert's slice of it, evaluated."""
    weight = weight.astype(dtype)
    arrays = (weight,) if spec is None else mx.quantize(weight, spec.group_size, spec.bits)
    mx.eval(arrays)
    return tuple(arrays)


def raw(array: mx.array) -> memoryview:
    """The bytes of an evaluated array, row by row."""
    return np.asarray(mx.contiguous(array).view(mx.uint8)).data.cast("B")
