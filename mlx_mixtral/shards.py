"""The safetensors files of a folder: what they hold and where, checked before it is believed.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_mixtral.errors import ModelError
from mlx_mixtral.jsonfile import read_json

INDEX = "model.safetensors.index.json"

# safetensors' dtype names, and numpy's type of the same width for those it has no float for.
DTYPES: dict[str, tuple[mx.Dtype, type[np.generic]]] = {
    "BF16": (mx.bfloat16, np.uint16),
    "F16": (mx.float16, np.float16),
    "F32": (mx.float32, np.float32),
    "U32": (mx.uint32, np.uint32),
    "U8": (mx.uint8, np.uint8),
    # What GPTQ and AWQ keep their codes in, and HQQ its shapes; nothing that runs here.
    "I32": (mx.int32, np.int32),
    "I16": (mx.int16, np.int16),
    "I64": (mx.int64, np.int64),
}

# The longest header that the format's own reader takes.
LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Span:
    """A contiguous byte range of a safetensors file, with a shape and dtype.

    ``name`` is the file's own name of a tensor that the span covers wholly, or None for
    a part of one.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    name: str | None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.mx_dtype.size

    @property
    def mx_dtype(self) -> mx.Dtype:
        return DTYPES[self.dtype][0]

    def part(self, start: int, shape: tuple[int, ...]) -> Span:
        """The span of ``shape`` that begins ``start`` elements into this one."""
        offset = self.offset + start * self.mx_dtype.size
        return Span(self.file, self.dtype, shape, offset, None)

    def read(self) -> mx.array:
        """The values; lazily where the span is a whole tensor, else read now."""
        if self.name is not None:
            return Shards().read(self)
        buffer = np.empty(self.shape, DTYPES[self.dtype][1])
        with self.file.open("rb") as file:
            file.seek(self.offset)
            read = file.readinto(buffer.data.cast("B"))
        if read != self.nbytes:
            raise ModelError(f"{self.file} ended while it was read; fetch it again")
        return mx.array(buffer).view(self.mx_dtype)


class Shards:
    """Spans read from files that MLX opens once; each whole tensor is to be had once.

    MLX goes through a file's header, thousands of tensors, each time that it opens one.
    """

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, mx.array]] = {}

    def read(self, span: Span) -> mx.array:
        """As ``Span.read`` does."""
        if span.name is None:
            return span.read()
        if span.file not in self._files:
            self._files[span.file] = mx.load(str(span.file), format="safetensors")  # type: ignore[assignment]
        return self._files[span.file].pop(span.name)


def read_folder(folder: Path) -> dict[str, Span]:
    """Every tensor of a folder under the name that its file gives it; headers only are read.

    Raises:
        ModelError: no weights, a shard missing or damaged, a name twice, or an index that
            promises what is not there or points outside the folder.
    """
    index = _index(folder)
    tensors: dict[str, Span] = {}
    for file in _shards(folder, set(index.values())):
        for name, span in read_header(file).items():
            if name in tensors:
                raise ModelError(f"{name} is in {tensors[name].file.name} and in {file.name}")
            tensors[name] = span
    for name, shard in index.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise ModelError(f"{shard} lacks {name}, which {INDEX} promises; fetch it again")
    return tensors


def _index(folder: Path) -> dict[str, str]:
    """Tensor name -> shard file name; empty when the folder has no index."""
    path = folder / INDEX
    return read_index(path) if path.is_file() else {}


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> shard file name, of an index file; the shards lie in its folder.

    Raises:
        ModelError: it is damaged, or points outside its folder.
    """
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(f, str) for f in index.values()):
        raise ModelError(f"{path} has no weight_map; fetch it again")
    for shard in index.values():
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise ModelError(f"{path} points outside its folder ({shard!r}); refused")
    return index


def _shards(folder: Path, indexed: set[str]) -> list[Path]:
    """The files that the index names; without an index, those that are there."""
    if indexed:
        files = [folder / shard for shard in sorted(indexed)]
        if missing := [f.name for f in files if not f.is_file()]:
            raise ModelError(
                f"{missing[0]} is missing from {folder} ({len(files) - len(missing)} of "
                f"{len(files)} shards are there); fetch the rest"
            )
        return files
    files = sorted([*folder.glob("model*.safetensors"), *folder.glob("weights*.safetensors")])
    if not files:
        others = [p.name for g in ("*.gguf", "*.pth", "*.pt", "*.npz", "consolidated*")
                  for p in sorted(folder.glob(g))]  # fmt: skip
        hint = f"it holds {others[0]}, which has to be converted" if others else "it holds none"
        raise ModelError(f"{folder} has no safetensors weights to run: {hint}")
    return files


def read_header(file: Path) -> dict[str, Span]:
    """The tensors of a safetensors file, with every size checked against the file's own.

    Format: an 8-byte little-endian length, that many bytes of JSON, then the data without gaps.

    Raises:
        ModelError: the header is damaged, or the file is shorter or longer than it says.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise ModelError(_truncated(file, size, length + 8))
            if length > LONGEST_HEADER:
                raise ModelError(f"{file} is not a safetensors file (a header of {length:,} bytes)")
            entries = json.loads(stream.read(length))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not a safetensors file ({error}); fetch it again") from None
    if not isinstance(entries, dict):
        raise ModelError(f"{file} is not a safetensors file; fetch it again")
    if not _is_metadata(entries.pop("__metadata__", {})):
        raise ModelError(f"{file}: the header's metadata is damaged; fetch it again")
    data = 8 + length
    spans = {name: _span(file, name, entry, data) for name, entry in entries.items()}
    end = data
    for name, span in sorted(spans.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if span.offset != end:
            raise ModelError(f"{file}: {name} does not begin where the tensor before it ends")
        end += span.nbytes
    if end != size:
        raise ModelError(_truncated(file, size, end))
    return spans


def _is_metadata(entry: Any) -> bool:
    """Texts by name, as the format asks for, or null, as MLX writes where there are none.

    MLX's own reader fails on anything else.
    """
    return entry is None or (
        isinstance(entry, dict) and all(isinstance(text, str) for text in entry.values())
    )


def _truncated(file: Path, size: int, want: int) -> str:
    return f"{file} has {size:,} bytes where its header promises {want:,}; fetch it again"


def _span(file: Path, name: str, entry: Any, data: int) -> Span:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
        sane = type(dtype) is str and all(type(n) is int and 0 <= n < 1 << 60 for n in numbers)
    except (KeyError, TypeError, ValueError):
        sane = False
    if not sane:
        raise ModelError(f"{file}: the header's entry for {name} is damaged; fetch it again")
    if dtype not in DTYPES:
        raise ModelError(f"{file}: {name} has dtype {dtype}, which is not supported")
    span = Span(file, dtype, tuple(shape), data + begin, name)
    if span.nbytes != end - begin:
        raise ModelError(f"{file}: {name} has {end - begin} bytes, its shape asks {span.nbytes}")
    return span
