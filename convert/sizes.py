"""What a model will take on disk, from its shapes alone."""

import mlx.core as mx

from convert.quantize import slots
from convert.recipe import spec_of
from convert.writer import Slot
from mlx_mixtral.config import ModelConfig, Quantization
from mlx_mixtral.weights import expected_shapes


def model_slots(
    config: ModelConfig, recipe: Quantization | None, half: mx.Dtype = mx.bfloat16
) -> list[Slot]:
    """All that converting a model of these shapes would write.

    Args:
        half: what its 16-bit tensors and its scales are stored in.
    """
    return [
        slot
        for path, shape in expected_shapes(config).items()
        for name in [f"{path}.weight"]
        for slot in slots(name, shape, half, spec_of(recipe, name))
    ]


def disk_bytes(config: ModelConfig, recipe: Quantization | None) -> int:
    """Bytes of weights."""
    return sum(slot.nbytes for slot in model_slots(config, recipe))
