"""A model folder on disk, all of it or nothing.

What a folder will hold is known before anything is computed, so every shard gets its
safetensors header first and each tensor, or one expert's slice of a stack, is then put at its
own offset as soon as it is ready, in any order and from any thread. All of it happens in a
hidden folder beside the target, which takes the target's name in the end by one rename: at no
moment does an unfinished model stand there.

Format: https://huggingface.co/docs/safetensors (8-byte length, JSON header, raw tensors).
"""

import errno
import json
import math
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_mixtral.errors import MixtralError, UsageError

SHARD_BYTES = 2 << 30
"""Shards are cut before they pass this size; a single larger tensor has a shard of its own."""

_WRITE_BYTES = 1 << 30  # macOS refuses single writes of 2 GiB and more
_ITEM_BYTES = {"U32": 4, "F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True)
class Slot:
    """A tensor to come: its name, its safetensors dtype (such as ``"BF16"``) and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in the file, in bytes."""
        return _ITEM_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its header as bytes, and where each tensor starts in the file."""

    file: str
    header: bytes
    offsets: Mapping[str, int]
    size: int


def plan_shards(slots: Sequence[Slot], limit: int = SHARD_BYTES) -> list[Shard]:
    """Distribute ``slots``, in order, over files of at most ``limit`` bytes of tensors each."""
    groups: list[list[Slot]] = []
    room = 0
    for slot in slots:
        if not groups or slot.nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(slot)
        room -= slot.nbytes
    if len(groups) == 1:
        return [_shard("model.safetensors", groups[0])]
    return [
        _shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", group)
        for number, group in enumerate(groups, 1)
    ]


def _shard(file: str, slots: Sequence[Slot]) -> Shard:
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    ends = 0
    for slot in slots:
        begins, ends = ends, ends + slot.nbytes
        entries[slot.name] = {
            "dtype": slot.dtype,
            "shape": list(slot.shape),
            "data_offsets": [begins, ends],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    offsets = {slot.name: start + entries[slot.name]["data_offsets"][0] for slot in slots}
    return Shard(file, len(text).to_bytes(8, "little") + text, offsets, start + ends)


class ShardWriter:
    """Fills the shards of one folder.

    ``finish`` counts the bytes that were put: a slice that was forgotten is an error, not a
    block of zeros in a loadable model.
    """

    def __init__(self, folder: Path, slots: Sequence[Slot], limit: int = SHARD_BYTES) -> None:
        self.folder = folder
        self.slots = {slot.name: slot for slot in slots}
        self.shards = plan_shards(slots, limit)
        self._shard_of = {name: shard for shard in self.shards for name in shard.offsets}
        self._missing = {
            shard.file: sum(self.slots[name].nbytes for name in shard.offsets)
            for shard in self.shards
        }
        self._lock = threading.Lock()
        for shard in self.shards:
            with _reported(self.folder / shard.file):
                (self.folder / shard.file).write_bytes(shard.header)
                os.truncate(self.folder / shard.file, shard.size)

    def put(self, name: str, data: bytes | memoryview, at: int = 0) -> None:
        """Write ``data`` into tensor ``name``, ``at`` bytes from its start. Thread-safe."""
        shard = self._shard_of[name]
        view = memoryview(data)
        if at + view.nbytes > self.slots[name].nbytes:
            raise ValueError(f"{name}: {view.nbytes} bytes at {at} do not fit")
        with _reported(self.folder / shard.file), _opened(self.folder / shard.file) as file:
            _write_at(file, view, shard.offsets[name] + at)
            with self._lock:
                self._missing[shard.file] -= view.nbytes
                complete = self._missing[shard.file] == 0
            if complete:
                os.fsync(file)

    def finish(self, parameters: int) -> None:
        """Write the index. ``parameters`` counts the model's weights before quantization."""
        for file, missing in self._missing.items():
            if missing:
                raise ValueError(f"{file}: {missing} bytes were never written")
        index = {
            "metadata": {
                "total_size": sum(slot.nbytes for slot in self.slots.values()),
                "total_parameters": parameters,
            },
            "weight_map": {name: self._shard_of[name].file for name in sorted(self.slots)},
        }
        write_file(self.folder / "model.safetensors.index.json", json.dumps(index, indent=4))


def write_file(path: Path, text: str | bytes) -> None:
    """Write a small file and flush it to the disk."""
    with _reported(path):
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        with _opened(path) as file:
            os.fsync(file)


@contextmanager
def new_folder(target: Path, size: int) -> Iterator[Path]:
    """A temporary folder that becomes ``target`` if the block succeeds, and vanishes if not.

    ``size`` is the number of bytes that will be written, for the check of the free space.

    Raises:
        UsageError: ``target`` holds files already, or its disk has not enough room.
    """
    target = target.expanduser().resolve()
    check_target(target)
    parent = target.parent
    with _reported(parent):
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
        if size > free:
            raise UsageError(
                f"not enough room in {parent}: the model needs {size / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free; make room or choose another place with -o"
            )
        folder = parent / f".{target.name}.partial-{secrets.token_hex(4)}"
        folder.mkdir()
    try:
        yield folder
        with _reported(target):
            _flush_folder(folder)
            folder.rename(target)
            _flush_folder(parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_target(target: Path) -> None:
    """Fail unless a model may be written to ``target``: nothing there yet, or an empty folder."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file; choose another folder with -o")
    if target.is_mount() or any(target.iterdir()):
        raise UsageError(
            f"{target} holds files already; remove it or choose another folder with -o"
        )


def _write_at(file: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(file, view[:_WRITE_BYTES], offset)
        view, offset = view[written:], offset + written


@contextmanager
def _opened(path: Path, flags: int = os.O_WRONLY) -> Iterator[int]:
    file = os.open(path, flags)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; make room, or choose another place with -o"
        raise MixtralError(f"cannot write {path}: {reason}") from error


def _flush_folder(folder: Path) -> None:
    with _opened(folder, os.O_RDONLY) as file:
        os.fsync(file)
