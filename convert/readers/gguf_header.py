"""The header of a GGUF file: metadata, and where each tensor lies. No weights are read.

Nothing in it is believed before it is compared with the file's size. (The reader of the
``gguf`` package takes a second for a vocabulary of 32,000 and trusts what it finds.)

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from convert.readers.gguf_blocks import KINDS, Kind, kind_name
from mlx_mixtral.errors import ModelError, UsageError

LONGEST_HEADER = 64 << 20
"""Those of released models have some MB, most of it the vocabulary."""
MOST_ENTRIES = 1 << 16
"""Keys, and tensors. The old files of 8x22B have about 2,000 tensors."""
MOST_ITEMS = 1 << 20
"""Tokens of a vocabulary, and whatever else comes in arrays."""
KEPT = frozenset(f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type"))
"""The arrays that are of use here; all others are passed over."""

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Value: TypeAlias = bool | int | float | str | list[str] | Array | None

_MOST_DIMENSIONS = 4
_LONGEST_NAME = 512
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4",
    6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor of the file. ``shape`` is row-major: [out, in], or [experts, out, in]."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    offset: int
    """Where its bytes begin in the file."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.kind.block * self.kind.size


@dataclass(frozen=True)
class Header:
    """What a file says about itself; arrays that are not in ``KEPT`` are None."""

    file: Path
    metadata: Mapping[str, Value]
    tensors: tuple[Stored, ...]

    def integer(self, key: str, default: int | None = None) -> int:
        """The whole number under ``key``.

        Raises:
            ModelError: it is missing and there is no default, or it is something else.
        """
        value = self._value(key, default)
        if type(value) is not int:
            raise ModelError(f"{self.file}: {key} is {short(value)}, not an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """As ``integer``, for a positive number."""
        value = self._value(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e30:  # type: ignore[operator]
            raise ModelError(f"{self.file}: {key} is {short(value)}, not a positive number")
        return float(value)  # type: ignore[arg-type]

    def text(self, key: str, default: str | None = None) -> str:
        """As ``integer``, for a string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise ModelError(f"{self.file}: {key} is {short(value)}, not a string")
        return value

    def _value(self, key: str, default: Value) -> Value:
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelError(f"{self.file} has no {key}; it does not describe a whole model")
        return value


def short(value: object) -> str:
    """A value from a file, fit for one line of an error."""
    text = repr(value) if isinstance(value, bool | int | float | str) else "an array"
    return text if len(text) <= 60 else f"{text[:60]}..."


def read_header(file: Path) -> Header:
    """The header of one file, checked.

    Raises:
        UsageError: there is no such file.
        ModelError: it is no GGUF file of version 2 or 3, cut off, or damaged.
    """
    if not file.is_file():
        raise UsageError(f"{file} is not a file; give the .gguf file that holds the model")
    try:
        with file.open("rb", buffering=1 << 20) as stream:
            return _Parser(file, stream, file.stat().st_size).header()
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}; fetch it again") from error


class _Parser:
    """Reads on from the beginning, never past the file's end or ``LONGEST_HEADER``."""

    def __init__(self, file: Path, stream: BinaryIO, size: int) -> None:
        self._file, self._stream, self._size = file, stream, size
        self._at = 0

    def header(self) -> Header:
        if self._size < 8 or self._take(4) != b"GGUF":
            raise ModelError(f"{self._file} is not a GGUF file; fetch it again")
        version = self._integer(4)
        if version & 0xFFFF == 0:
            raise ModelError(f"{self._file} is a big-endian GGUF file; fetch a little-endian one")
        if version not in (2, 3):
            raise ModelError(
                f"{self._file} is a GGUF file of version {version}; only 2 and 3 can be read, so "
                f"fetch a newer file"
            )
        count, keys = self._count(8, MOST_ENTRIES), self._count(8, MOST_ENTRIES)
        metadata: dict[str, Value] = {}
        for _ in range(keys):
            key = self._name()
            if key in metadata:
                raise self._damaged(f"{key} is there twice")
            metadata[key] = self._typed(key)
        infos = [self._info() for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= self._size:
            raise self._damaged(f"general.alignment is {short(alignment)}")
        begin = -(-self._at // alignment) * alignment
        tensors = tuple(Stored(n, s, k, begin + o) for n, s, k, o in infos)
        self._check(tensors)
        return Header(self._file, metadata, tensors)

    def _check(self, tensors: tuple[Stored, ...]) -> None:
        """Every tensor in the file, none over another: a small file must not become a large one."""
        end, names = self._at, set()
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.name in names:
                raise self._damaged(f"tensor {tensor.name} is there twice")
            names.add(tensor.name)
            if tensor.offset < end:
                raise self._damaged(f"tensor {tensor.name} begins within another")
            end = tensor.offset + tensor.nbytes
        if end > self._size:
            raise ModelError(
                f"{self._file} has {self._size:,} bytes where its header promises {end:,}; fetch "
                f"it again (if it came in slices, join them with cat)"
            )

    def _info(self) -> tuple[str, tuple[int, ...], Kind, int]:
        name = self._name()
        dimensions = self._count(4, _MOST_DIMENSIONS)
        shape = tuple(self._integer(8) for _ in range(dimensions))[::-1]
        number, offset = self._integer(4), self._integer(8)
        if (kind := KINDS.get(number)) is None:
            raise ModelError(
                f"{self._file}: tensor {name} is of type {kind_name(number)}, which cannot be "
                f"read here; fetch another quantization of this model"
            )
        if not shape or min(shape) < 1 or shape[-1] % kind.block:
            raise self._damaged(f"tensor {name} cannot be {kind.name} of shape {list(shape)}")
        return name, shape, kind, offset

    def _typed(self, key: str) -> Value:
        """A value that its type goes before."""
        kind = self._integer(4)
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(keep=key in KEPT)
        value = self._scalars(kind, 1)[0]
        # The shortest decimal is what people wrote: 1e-5, not 9.999999747378752e-06.
        return float(str(value)) if kind == 6 else value.item()

    def _array(self, *, keep: bool) -> Value:
        kind, count = self._integer(4), self._count(8, MOST_ITEMS)
        if kind != _STRING:
            values = self._scalars(kind, count)
            return values if keep else None
        if keep:
            return [self._string() for _ in range(count)]
        for _ in range(count):
            self._take(self._integer(8))
        return None

    def _scalars(self, kind: int, count: int) -> Array:
        if kind not in _SCALARS:
            raise self._damaged(f"a value is of type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        data = self._take(count * dtype.itemsize)
        return np.frombuffer(data, "u1").astype(bool) if kind == 7 else np.frombuffer(data, dtype)

    def _name(self) -> str:
        """A key or a tensor's name, which may stand in an error's one line."""
        name = self._string()
        if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
            raise self._damaged(f"{short(name)} is no name")
        return name

    def _string(self) -> str:
        return self._take(self._integer(8)).decode(errors="surrogateescape")

    def _count(self, size: int, most: int) -> int:
        if (count := self._integer(size)) > most:
            raise self._damaged(f"it counts {count:,} where {most:,} are possible")
        return count

    def _integer(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _take(self, count: int) -> bytes:
        if self._at + count > min(self._size, LONGEST_HEADER):
            raise self._damaged("it runs on past its end")
        data = self._stream.read(count)
        if len(data) != count:
            raise ModelError(f"{self._file} ended while it was read; fetch it again")
        self._at += count
        return data

    def _damaged(self, what: str) -> ModelError:
        return ModelError(f"{self._file}: the header is damaged: {what}; fetch it again")
