"""One matrix to MLX's affine format: codes, and a scale and a bias for each group of a row.

Format: https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html
"""

import mlx.core as mx
import numpy as np

from convert.writer import Slot
from mlx_mixtral.config import QuantSpec
from mlx_mixtral.weights import packed_shapes

_DTYPES = {mx.float32: "F32", mx.bfloat16: "BF16", mx.float16: "F16"}


def stored_dtype(dtype: mx.Dtype) -> mx.Dtype:
    """The dtype that weights (or their scales) of ``dtype`` are stored in: float32 is halved.

    bfloat16 keeps its range; float16 would lose what is above 65504 or below 6e-8.
    """
    return mx.bfloat16 if dtype == mx.float32 else dtype


def slots(name: str, shape: tuple[int, ...], dtype: mx.Dtype, spec: QuantSpec | None) -> list[Slot]:
    """What a weight of ``shape`` and ``dtype`` becomes on disk, before it is computed."""
    kept = _DTYPES[stored_dtype(dtype)]
    if spec is None:
        return [Slot(name, kept, shape)]
    path = name.removesuffix(".weight")
    return [
        Slot(f"{path}.{kind}", "U32" if kind == "weight" else kept, packed)
        for kind, packed in packed_shapes(shape, spec).items()
    ]


def quantize(weight: mx.array, spec: QuantSpec | None) -> tuple[mx.array, ...]:
    """The arrays for the ``slots`` of a weight, or of one expert's slice of it, evaluated."""
    weight = weight.astype(stored_dtype(weight.dtype))
    arrays = (weight,) if spec is None else mx.quantize(weight, spec.group_size, spec.bits)
    mx.eval(arrays)
    return tuple(arrays)


def raw(array: mx.array) -> memoryview:
    """The bytes of an evaluated array, row by row."""
    return np.asarray(mx.contiguous(array).view(mx.uint8)).data.cast("B")
