"""Hugging Face checkpoints and MLX folders in safetensors, 16 or 32 bits a weight."""

from pathlib import Path

from convert.readers import Source
from mlx_mixtral.config import read_config
from mlx_mixtral.errors import UsageError
from mlx_mixtral.weights import expected_shapes, open_weights


def read_folder(folder: Path) -> Source:
    """The model in ``folder``; headers are read, and no weights.

    Raises:
        UsageError: there is no such folder, or its weights are quantized already.
        ModelError: the folder's config or weights are damaged, incomplete or of another
            architecture.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give the folder that holds config.json")
    config = read_config(folder)
    if config.quantization:
        raise UsageError(f"{folder} is quantized already; convert its 16-bit original instead")
    tensors = open_weights(folder, config)
    names = [f"{path}.weight" for path in expected_shapes(config)]
    return Source(folder, config, {name: tensors[name] for name in names})
