"""Mistral's own files, in the three layouts that they were released in.

``consolidated.safetensors``; ``consolidated.00.pth``, which mirrors cut into pieces; and
``consolidated.00.pt`` and on, each with some of the layers, where the experts of a layer are one
matrix. All have Mistral's own names and interleaved RoPE, and params.json beside them or, in a
copy from Hugging Face, config.json.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from convert import names
from convert.readers import Named, Source, assemble
from convert.readers.consolidated import find, uneven
from convert.readers.extent import Extent, Joined
from convert.readers.pickles import read_tensors
from convert.readers.plain import Plain
from mlx_mixtral.config import ModelConfig
from mlx_mixtral.errors import ModelError, UsageError
from mlx_mixtral.jsonfile import read_json
from mlx_mixtral.shards import read_header

# RoPE's angles, which follow from the configuration.
_DERIVED = re.compile(r"(.*\.)?(rope\.freqs|freqs_cis|inv_freq)", re.DOTALL)


def read_native(path: Path) -> Source:
    """The model in the folder ``path``, or the one that the file ``path`` belongs to.

    Headers are read, and no weights.

    Raises:
        UsageError: there are no such files, or several models.
        ModelError: a file is missing or damaged, a tensor is missing, unknown or of a wrong
            shape, or the configuration is missing or another architecture's.
    """
    path = path.expanduser()
    folder, given = (path.parent, path.name) if path.is_file() else (path, None)
    if not folder.is_dir():
        raise UsageError(f"there is nothing at {path}; give the folder of Mistral's own files")
    checkpoint = find(folder, given)
    config = _config(folder)
    found = [
        named
        for file in checkpoint.files
        for name, tensor in _tensors(file).items()
        for named in _named(name, tensor, config)
    ]
    form = f"Mistral's original weights, {checkpoint.form}"
    return Source(folder, config, assemble(found, config), form)


def _config(folder: Path) -> ModelConfig:
    for name in ("params.json", "config.json"):
        if (path := folder / name).is_file():
            raw = read_json(path)
            try:
                return ModelConfig.from_params(raw) if "dim" in raw else ModelConfig.from_hf(raw)
            except ModelError as error:
                raise ModelError(f"{path}: {error}") from None
    raise ModelError(f"{folder} has no params.json; fetch the one that belongs to the weights")


def _tensors(file: Joined) -> Mapping[str, Plain]:
    if file.pieces[0].suffix == ".safetensors":
        spans = read_header(file.pieces[0]).items()
        return {
            name: Plain(Extent(file, span.offset, span.shape, span.mx_dtype))
            for name, span in spans
        }
    try:
        return read_tensors(file)
    except ModelError as error:
        raise ModelError(f"{error}{uneven(file)}") from None


def _named(name: str, tensor: Plain, config: ModelConfig) -> Iterator[Named]:
    if _DERIVED.fullmatch(name):
        return
    place = names.native(name)
    if place is None or place.kind != "weight":
        yield Named(f"unknown {name}", None, tensor, ascii(name[:100]))
    elif place.expert is None and "switch_mlp" in place.path:
        yield from _experts(name, place.path, tensor, config)
    else:
        heads = names.rope_heads(place.path, config)
        yield Named(place.path, place.expert, replace(tensor, heads=heads), name)


def _experts(name: str, path: str, tensor: Plain, config: ModelConfig) -> Iterator[Named]:
    """The experts of a layer out of the one matrix that they are in the .pt files: [E F, D].

    Each has F rows of it. Those of w2 stand on end: its own matrix is [D, F].
    """
    experts, rows = config.num_local_experts, config.intermediate_size
    if tensor.transposed or tensor.shape != (experts * rows, config.hidden_size):
        raise ModelError(
            f"{tensor.files[0].name}: {name} has shape {list(tensor.shape)}, the configuration "
            f"asks for {[experts * rows, config.hidden_size]}, row by row"
        )
    for expert in range(experts):
        extent = tensor.extent.rows(expert * rows, (expert + 1) * rows)
        yield Named(path, expert, Plain(extent, transposed=name.endswith(".w2")), name)
