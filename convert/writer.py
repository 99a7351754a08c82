"""The shards of a new model, filled in any order and from any thread.

What a folder will hold is known before anything is computed, so every shard gets its
safetensors header first, and each tensor, or one expert's slice of a stack, is put at its own
offset as soon as it is ready. A shard that is complete is read back: its checksum goes into
the manifest, and what does not read as it was written is an error.

Format: https://huggingface.co/docs/safetensors (8-byte length, JSON header, raw tensors).
"""

import hashlib
import json
import math
import os
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.target import opened, reported, write_at, write_file
from mlx_mixtral.errors import MixtralError

SHARD_BYTES = 2 << 30
"""Shards are cut before they pass this size; a single larger tensor has a shard of its own."""

_BLOCK = 4 << 20
_ITEM_BYTES = {"U32": 4, "F32": 4, "BF16": 2, "F16": 2, "U8": 1}


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


@dataclass(frozen=True, order=True)
class Region:
    """Bytes ``begin`` to ``end`` of a shard, and their CRC-32."""

    begin: int
    end: int
    crc: int


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
    """Fills the shards of one folder, and finds those there that an earlier run has begun.

    ``finish`` counts the bytes that were put: a slice that was forgotten is an error, not a
    block of zeros in a loadable model.
    """

    def __init__(self, folder: Path, slots: Sequence[Slot], limit: int = SHARD_BYTES) -> None:
        self.folder = folder
        self.slots = {slot.name: slot for slot in slots}
        self.shards = plan_shards(slots, limit)
        self.sha256: dict[str, str] = {}
        """The digests of the complete shards, by file name."""
        self._shard_of = {name: shard for shard in self.shards for name in shard.offsets}
        self._regions: dict[str, list[Region]] = {shard.file: [] for shard in self.shards}
        self._missing = {shard.file: shard.size - len(shard.header) for shard in self.shards}
        self._lock = threading.Lock()
        for shard in self.shards:
            self._begin(shard)

    def _begin(self, shard: Shard) -> None:
        path = self.folder / shard.file
        with reported(path):
            path.touch()
            with path.open("r+b") as file:
                file.write(shard.header)
                file.truncate(shard.size)

    def put(self, name: str, data: bytes | memoryview, at: int = 0) -> int:
        """Write ``data`` into tensor ``name``, ``at`` bytes from its start. Thread-safe.

        Returns:
            The CRC-32 of ``data``.
        """
        shard = self._shard_of[name]
        view = memoryview(data)
        if at + view.nbytes > self.slots[name].nbytes:
            raise ValueError(f"{name}: {view.nbytes} bytes at {at} do not fit")
        begin = shard.offsets[name] + at
        with reported(self.folder / shard.file), opened(self.folder / shard.file) as file:
            write_at(file, view, begin)
        region = Region(begin, begin + view.nbytes, zlib.crc32(view))
        self._count(shard, region)
        return region.crc

    def get(self, name: str, at: int, size: int) -> bytes:
        """``size`` bytes of tensor ``name``, ``at`` bytes from its start, that were put there."""
        shard = self._shard_of[name]
        with (self.folder / shard.file).open("rb", buffering=0) as file:
            file.seek(shard.offsets[name] + at)
            data = file.read(size)
        if len(data) < size:
            raise MixtralError(f"{self.folder / shard.file} has become shorter; convert again")
        return data

    def find(self, places: Sequence[tuple[str, int, int]], crc: int) -> bool:
        """Whether what an earlier run put at ``places`` (name, at, size) has checksum ``crc``.

        If so, it counts as put. ``crc`` is that of the checksums (see ``combined``).
        """
        regions = []
        for name, at, size in places:
            shard = self._shard_of[name]
            begin = shard.offsets[name] + at
            read = Region(begin, begin + size, 0)
            [found] = _read_back(self.folder / shard.file, [read])
            regions.append((shard, found))
        if combined(region.crc for _, region in regions) != crc:
            return False
        for shard, region in regions:
            self._count(shard, region)
        return True

    def _count(self, shard: Shard, region: Region) -> None:
        with self._lock:
            self._regions[shard.file].append(region)
            self._missing[shard.file] -= region.end - region.begin
            complete = self._missing[shard.file] == 0
        if complete:
            self._close(shard)

    def _close(self, shard: Shard) -> None:
        path, regions = self.folder / shard.file, sorted(self._regions[shard.file])
        with reported(path), opened(path) as file:
            os.fsync(file)
        sha256 = hashlib.sha256(shard.header)
        if _read_back(path, regions, sha256) != regions:
            raise MixtralError(
                f"{path} does not read as it was written: the disk may be failing; check it, "
                f"then run the same command again"
            )
        self.sha256[shard.file] = sha256.hexdigest()

    def flush(self) -> None:
        """Put on the disk all that was put so far."""
        for shard in self.shards:
            with reported(self.folder / shard.file), opened(self.folder / shard.file) as file:
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


def combined(checksums: Iterable[int]) -> int:
    """One checksum of several, in order."""
    return zlib.crc32(b"".join(crc.to_bytes(4, "little") for crc in checksums))


def _read_back(
    path: Path, regions: Sequence[Region], sha256: "hashlib._Hash | None" = None
) -> list[Region]:
    """The regions as they are in the file, which ``sha256`` is fed with."""
    found = []
    buffer = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        for region in regions:
            file.seek(region.begin)
            left, crc = region.end - region.begin, 0
            while left and (read := file.readinto(buffer[: min(left, _BLOCK)])):
                crc = zlib.crc32(buffer[:read], crc)
                if sha256:
                    sha256.update(buffer[:read])
                left -= read
            found.append(Region(region.begin, region.end - left, crc))
    return found
