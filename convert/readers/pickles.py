"""What ``torch.save`` wrote, read without torch and without running what a pickle says.

Such a file is a zip archive of storages, which are plain bytes, and of ``data.pkl``, a pickle
that says which tensor lies where in which storage.

Format: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any
from zipfile import ZipInfo

import mlx.core as mx

from convert.readers.extent import Extent, Joined
from convert.readers.plain import Plain
from convert.readers.stored_zip import read_directory, stored
from convert.readers.unpickle import (
    MOST_BYTES,
    STORAGES,
    Global,
    Refused,
    Storage,
    Tensor,
    run,
    shown,
)
from mlx_mixtral.errors import ModelError

_MOST_AXES = 4
_LARGEST = 1 << 60


def read_tensors(file: Joined) -> dict[str, Plain]:
    """The tensors of a checkpoint, by name; of the storages nothing is read.

    The checkpoint is a mapping of names to tensors, or a mapping with one such mapping in it
    (``{"model": {...}}``).

    Raises:
        ModelError: the file is damaged, of a form older than torch 1.6, a TorchScript program,
            or names anything that does not belong to tensors of floats.
    """
    name = file.pieces[0].name
    _refuse_old(file)
    archive = _Archive.open(file)
    pickle = archive.entry("data.pkl")
    if pickle.nbytes > MOST_BYTES:
        raise ModelError(f"{name}: data.pkl has {pickle.nbytes:,} bytes, more than weights need")
    try:
        tensors = _tensors(run(pickle.raw().tobytes()))
        return {key: _part(key, tensor, archive) for key, tensor in tensors.items()}
    except Refused as reason:
        raise ModelError(f"{name}: {reason}") from None


# --- the archive


def _refuse_old(file: Joined) -> None:
    first = Extent(file, 0, (min(file.size, 1),), mx.uint8).raw().tobytes()
    if first == b"\x80":  # a pickle begins so
        raise ModelError(
            f"{file.pieces[0].name} was saved by torch before 1.6 or without an archive; load it "
            f"with torch and save it again, with torch 1.6 or newer"
        )


@dataclass(frozen=True)
class _Archive:
    """The entries of an archive, all of which are under one folder."""

    file: Joined
    entries: Mapping[str, ZipInfo]

    @classmethod
    def open(cls, file: Joined) -> "_Archive":
        """Of an archive that holds no program."""
        name, found = file.pieces[0].name, read_directory(file)
        stems = [path.removesuffix("data.pkl") for path in found if path.endswith("/data.pkl")]
        if len(stems) != 1:
            raise ModelError(f"{name} is a zip archive, but not one that torch.save wrote")
        entries = {
            path.removeprefix(stems[0]): info
            for path, info in found.items()
            if path.startswith(stems[0])
        }
        if any(path.startswith(("code/", "constants.pkl")) for path in entries):
            raise ModelError(
                f"{name} is a TorchScript program, not a checkpoint; save its state_dict() instead"
            )
        archive = cls(file, entries)
        if "byteorder" in entries:
            order = archive.entry("byteorder")
            if order.nbytes > 16 or order.raw().tobytes() != b"little":
                raise ModelError(f"{name} is in another byte order; save it again on this machine")
        return archive

    def entry(self, path: str) -> Extent:
        """The bytes of an entry that is there."""
        return stored(self.file, self.entries[path])


# --- what the pickle made


def _tensors(root: Any) -> dict[str, Tensor]:
    """The one mapping with tensors; what else it holds, such as a step count, is left out."""
    inner = list(root.values()) if type(root) is dict else []
    # The same mapping may be there a million times.
    maps = {id(value): value for value in (root, *inner) if type(value) is dict}
    found = [
        {key: value for key, value in mapping.items() if type(value) is Tensor}
        for mapping in maps.values()
    ]
    if not (found and found[0]):
        found = [tensors for tensors in found if tensors]
        if len(found) != 1:
            what = "several models, or one in several parts" if found else "no tensors"
            raise Refused(f"data.pkl holds {what}; save the state_dict() of one model alone")
    for name in found[0]:
        if type(name) is not str or not name.isprintable():
            raise Refused(f"data.pkl has a tensor named {shown(name)}, which is no name; refused")
    return found[0]


def _part(name: str, tensor: Tensor, archive: _Archive) -> Plain:
    """Where ``tensor`` lies, after a check that it lies within its storage."""
    name = f"tensor {shown(name)}"
    storage, offset, size, stride, *others = tensor.told
    if type(size) is not tuple or type(stride) is not tuple or len(size) > _MOST_AXES:
        raise Refused(f"{name} has an impossible shape; fetch the file again")
    if len(size) != len(stride) or not all(map(_is_count, (offset, *size, *stride))):
        raise Refused(f"{name} has an impossible shape; fetch the file again")
    if len(others) > 2 and others[2]:  # such as: negate every value
        raise Refused(f"{name} has more to it than its values; save it again as a plain tensor")
    values = _values(name, storage, archive)
    if offset + math.prod(size) > values.shape[0]:
        raise Refused(f"{name} reaches behind the end of its storage; fetch the file again")
    if _is_row_major(size, stride):
        return Plain(values.part(offset, size))
    if len(size) == 2 and _is_row_major(size[::-1], stride[::-1]):
        return Plain(values.part(offset, size[::-1]), transposed=True)
    raise Refused(
        f"{name} of shape {list(size)} has strides {list(stride)}, neither row by row nor column "
        f"by column; save it again after .contiguous()"
    )


def _values(name: str, storage: Storage, archive: _Archive) -> Extent:
    """All of a storage, in its type."""
    match storage.told:
        case ("storage", Global(name=kind), str(key), str(), count) if kind in STORAGES:
            dtype = STORAGES[kind]
        case _:
            raise Refused(f"{name} is not in a storage of weights; refused")
    if f"data/{key}" not in archive.entries:
        raise Refused(f"{name} is in storage {shown(key)}, which is missing; fetch the file again")
    entry = archive.entry(f"data/{key}")
    if not _is_count(count) or count * dtype.size != entry.nbytes:
        raise Refused(
            f"{name} is in storage {shown(key)} of {entry.nbytes:,} bytes, which is not what "
            f"data.pkl says; fetch the file again"
        )
    return Extent(entry.file, entry.offset, (count,), dtype)


def _is_count(number: Any) -> bool:
    return type(number) is int and 0 <= number < _LARGEST


def _is_row_major(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    steps = [*accumulate(reversed(size[1:]), mul, initial=1)][::-1]
    # Nobody takes a step along an axis of one.
    return all(n == 1 or s == step for n, s, step in zip(size, stride, steps, strict=False))
