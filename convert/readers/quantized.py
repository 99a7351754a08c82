"""Hugging Face folders whose matrices another program quantized: settings, names and files.

Each such matrix is a few tensors (``qweight``, ``scales``, ...) under one module path.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx

from convert.names import hugging_face
from convert.readers import Named, Part
from convert.readers.extent import Extent, Joined
from convert.readers.plain import Plain
from mlx_mixtral.config import ModelConfig
from mlx_mixtral.errors import ModelError, UsageError
from mlx_mixtral.jsonfile import read_json, read_json_if_there
from mlx_mixtral.shards import INDEX, Span, read_header, read_index
from mlx_mixtral.weights import DERIVED, FLOATS, expected_shapes

_SIDE_FILES = ("quantize_config.json", "quant_config.json")

# Names that newer programs give the experts' matrices, and the router beside them.
_NEW_EXPERT = re.compile(
    r"(model\.layers\.\d{1,4}\.)(?:mlp|block_sparse_moe)\.experts\.(\d{1,4})\.(gate|up|down)_proj"
)
_NEW_ROUTER = re.compile(r"(model\.layers\.\d{1,4}\.)mlp\.gate")
_OLD_EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}


@dataclass(frozen=True)
class Matrix:
    """What a checkpoint has for one module: arrays by kind, such as ``qweight``."""

    path: str
    expert: int | None
    name: str
    """The module's name in the files."""
    arrays: Mapping[str, Extent]
    shape: tuple[int, ...]
    """[out, in], if the model has a matrix of this path; else empty."""

    @property
    def file(self) -> str:
        return next(iter(self.arrays.values())).files[0].name

    def error(self, problem: str) -> ModelError:
        return ModelError(f"{self.file}: {self.name}: {problem}")

    def take(self, kind: str, shape: tuple[int, ...], dtypes: tuple[mx.Dtype, ...]) -> Extent:
        """One of the arrays, which has to be of ``shape`` and of one of ``dtypes``.

        Raises:
            ModelError: it is missing or another.
        """
        array = self.arrays.get(kind)
        if array is None:
            raise self.error(f"it lacks {kind}; the download may be incomplete")
        if array.shape != shape:
            raise self.error(
                f"{kind} has shape {list(array.shape)}, {list(shape)} is what fits the model"
            )
        if array.dtype not in dtypes:
            raise self.error(f"{kind} is {array.dtype}, which cannot be right")
        return array


@dataclass(frozen=True)
class Folder:
    """A checkpoint's folder, its headers read."""

    path: Path
    config: ModelConfig
    settings: Mapping[str, Any]
    """How it was quantized, as config.json or a file beside it says."""

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """Every module with tensors, in the order of the files."""
        grouped: dict[str, dict[str, Extent]] = {}
        for file, spans in _files(self.path).items():
            joined = Joined((file,))
            for raw, span in spans.items():
                if DERIVED.fullmatch(raw):
                    continue
                if self.config.tie_word_embeddings and raw.startswith("lm_head."):
                    continue
                name, _, kind = raw.rpartition(".")
                arrays = grouped.setdefault(name, {})
                if kind in arrays:
                    raise ModelError(f"{raw} is in {arrays[kind].files[0].name} and in {file.name}")
                arrays[kind] = Extent(joined, span.offset, span.shape, span.mx_dtype)
        shapes = expected_shapes(self.config)
        return tuple(_matrix(name, arrays, shapes) for name, arrays in grouped.items())

    def named(self, kinds: Set[str], quantized: Callable[[Matrix], Part]) -> Iterator[Named]:
        """All parts of the model; ``quantized`` makes those that have arrays of ``kinds``.

        Raises:
            ModelError: a module has a bias, or an array of no known kind.
        """
        for matrix in self.matrices:
            _check_bias(matrix)
            left = matrix.arrays.keys() - {"bias"} if matrix.shape else matrix.arrays.keys()
            if matrix.shape and left and left <= kinds:
                yield Named(matrix.path, matrix.expert, quantized(matrix), matrix.name)
                continue
            for kind in left:
                name = f"{matrix.name}.{kind}"
                # No module has the name of a tensor: it is refused by that name later.
                path, expert = (matrix.path, matrix.expert) if kind == "weight" else (name, None)
                yield Named(path, expert, Plain(matrix.arrays[kind]), name)

    def setting(self, *names: str, default: object = None) -> Any:
        """The first of several names of a setting that is there."""
        return next((self.settings[n] for n in names if self.settings.get(n) is not None), default)

    def integer(self, *names: str, default: int) -> int:
        """A setting that is a whole number.

        Raises:
            ModelError: it is something else.
        """
        value = self.setting(*names, default=default)
        if type(value) is not int:
            raise ModelError(f"{self.path}: {names[0]} is {value!r}, not a whole number")
        return value


def open_folder(folder: Path) -> Folder:
    """The checkpoint in ``folder``; no weights are read.

    Raises:
        UsageError: there is no such folder.
        ModelError: its config.json is damaged, or of another architecture.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give the folder that holds config.json")
    raw = read_json(folder / "config.json")
    quantization = raw.pop("quantization_config", None) or {}
    if not isinstance(quantization, dict):
        raise ModelError(f"{folder / 'config.json'}: quantization_config is not a JSON object")
    try:
        config = ModelConfig.from_hf(raw)
    except ModelError as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from None
    beside = [read_json_if_there(folder / name) for name in _SIDE_FILES]
    return Folder(folder, config, beside[1] | beside[0] | quantization)


def _matrix(
    name: str, arrays: Mapping[str, Extent], shapes: Mapping[str, tuple[int, ...]]
) -> Matrix:
    place = hugging_face(f"{_usual(name)}.weight")
    shape = shapes.get(place.path, ())[-2:]
    return Matrix(place.path, place.expert, name, arrays, shape if len(shape) == 2 else ())


def _usual(name: str) -> str:
    """The name that the model's own release gives a module."""
    if match := _NEW_EXPERT.fullmatch(name):
        return f"{match[1]}block_sparse_moe.experts.{match[2]}.{_OLD_EXPERT[match[3]]}"
    if match := _NEW_ROUTER.fullmatch(name):
        return f"{match[1]}block_sparse_moe.gate"
    return name


def _check_bias(matrix: Matrix) -> None:
    """Some programs write biases of zeros for models that have none."""
    if not matrix.shape or "bias" not in matrix.arrays:
        return
    bias = matrix.take("bias", matrix.shape[:1], FLOATS)
    if bool(mx.any(bias.read() != 0)):
        raise matrix.error("it has a bias; Mistral's models have none")


def _files(folder: Path) -> dict[Path, dict[str, Span]]:
    """The tensors of each safetensors file that belongs to the model."""
    index = _index(folder)
    files = [folder / name for name in sorted(set(index.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(f"{missing[0]} is missing from {folder}; fetch the rest")
    files = files or sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{folder} has no *.safetensors; other forms of quantized weights are not read"
        )
    tensors = {file: read_header(file) for file in files}
    for name, shard in index.items():
        if name not in tensors[folder / shard]:
            raise ModelError(f"{shard} lacks {name}, which the index promises; fetch it again")
    return tensors


def _index(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, as the index says; empty where there is none."""
    found = sorted(folder.glob("*.safetensors.index.json"))
    if len(found) > 1 and folder / INDEX in found:
        found = [folder / INDEX]
    if len(found) > 1:
        raise ModelError(f"{folder} holds two models, {found[0].name} and {found[1].name}")
    return read_index(found[0]) if found else {}
