"""Keys and values in a file, so that a long text is computed once.

A safetensors file: ``keys.0`` and ``values.0`` of the first layer and so on, or their
``.codes``, ``.scales`` and ``.biases``, then a checksum of all bytes before it. Metadata tell
the text's tokens, how it is kept, and of which model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import mlx.core as mx

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.errors import MixtralError, ModelError, UsageError
from mlx_mixtral.generation.kv import KVSettings, LayerKV
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.shards import DTYPES, Span, read_folder, read_header

if TYPE_CHECKING:
    from mlx_mixtral.loading import LanguageModel

FORMAT = "mlx-mixtral keys and values 1"
CHECKSUM = "checksum"
SAMPLE = 4096
"""Bytes of each weight that tell models of one shape apart."""
ROOM_TO_LEAVE = 1 << 24
"""Bytes that stay free on the disk."""
BLOCK = 1 << 22

Progress = Callable[[int, int], None]
STORED_AS = {dtype: name for name, (dtype, _) in DTYPES.items()}


@dataclass(frozen=True)
class Owner:
    """The model that keys and values belong to: no other can use them.

    Attributes:
        config: its shapes and constants.
        weights: tells its weights from all others (``fingerprint``).
        dtype: of the activations.
    """

    config: ModelConfig
    weights: str
    dtype: mx.Dtype

    @classmethod
    def of(cls, lm: LanguageModel) -> Owner:
        return cls(lm.config, fingerprint(lm.path), activations(lm))


def activations(lm: LanguageModel) -> mx.Dtype:
    """What a model computes in, which its keys and values are."""
    dtype: mx.Dtype = lm.model.model.norm.weight.dtype
    return dtype


def fingerprint(folder: Path) -> str:
    """Of a model folder's weights, wherever it lies: names, shapes, and some bytes of each.

    Fine-tunes share names and shapes, and some change a few matrices only, so all are looked at.
    """
    digest = hashlib.sha256()
    spans = sorted(read_folder(folder).items(), key=lambda item: (item[1].file, item[1].offset))
    for name, span in spans:
        digest.update(f"{name} {span.dtype} {span.shape}\n".encode())
        digest.update(_middle(span))
    return digest.hexdigest()


def _middle(span: Span) -> bytes:
    with span.file.open("rb") as file:
        file.seek(span.offset + max(0, span.nbytes - SAMPLE) // 2)
        return file.read(min(SAMPLE, span.nbytes))


# --- writing


def check_target(path: Path) -> None:
    """Raises UsageError where no file could be written, before anything is computed for it."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written; name a file in a folder of yours")


def write(path: Path, cache: PromptCache, owner: Owner, progress: Progress | None = None) -> None:
    """Write the file, whole or not at all; one that was there is replaced.

    Nothing is written where no text is settled, as in the middle of a first answer.

    Args:
        progress: called with (bytes written, bytes in all).

    Raises:
        MixtralError: it cannot be written, or the disk has no room for it.
    """
    if len(cache.tokens) < max(1, cache.layers[0].earliest):
        return
    stored = list(_stored(cache))
    total = sum(array.nbytes for _, array in stored)
    try:
        free = shutil.disk_usage(path.parent).free
        if total + ROOM_TO_LEAVE > free:
            raise MixtralError(
                f"{path} needs {total / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free; "
                "what was computed is not saved"
            )
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                _write(file, _metadata(cache, owner), stored, progress or (lambda *_: None))
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise MixtralError(f"{path} cannot be written ({error.strerror})") from None


def _write(
    file: BinaryIO, metadata: dict[str, str], stored: list[tuple[str, mx.array]], tell: Progress
) -> None:
    total, done = sum(array.nbytes for _, array in stored), 0
    header = _header(metadata, stored)
    file.write(header)
    checksum = zlib.crc32(header)
    for _, array in stored:
        # One after the other: each is copied to lie in one piece.
        data = memoryview(mx.contiguous(array).view(mx.uint8))  # type: ignore[arg-type]
        file.write(data)
        checksum = zlib.crc32(data, checksum)
        done += array.nbytes
        tell(done, total)
    file.write(checksum.to_bytes(4, "little"))


def _header(metadata: dict[str, str], stored: list[tuple[str, mx.array]]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, dtype, shape, nbytes in (
        *((name, STORED_AS[a.dtype], list(a.shape), a.nbytes) for name, a in stored),
        (CHECKSUM, "U32", [1], 4),
    ):
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    return len(text).to_bytes(8, "little") + text


def _metadata(cache: PromptCache, owner: Owner) -> dict[str, str]:
    return {
        "format": FORMAT,
        "model": _model_of(owner),
        "dtype": STORED_AS[owner.dtype],
        "kv": json.dumps(asdict(cache.kv)),
        "gap": json.dumps(cache.layers[0].gap),
        "tokens": json.dumps(cache.tokens),
    }


def _model_of(owner: Owner) -> str:
    """A digest of all that the keys of a token depend on, but for the activations' type."""
    shapes = asdict(owner.config)
    for name in ("max_position_embeddings", "bos_token_id", "eos_token_ids", "quantization"):
        del shapes[name]
    text = json.dumps([shapes, owner.weights], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _stored(cache: PromptCache) -> Iterator[tuple[str, mx.array]]:
    """The tensors of a file: of each buffer, the places of the text."""
    for n, layer in enumerate(cache.layers):
        for name, part in zip(_names(layer, n), layer.parts, strict=True):
            yield name, part[..., : len(cache.tokens) - layer.gap, :]


def _names(layer: LayerKV, n: int) -> list[str]:
    kinds = (".codes", ".scales", ".biases") if layer.layout.bits else ("",)
    return [f"{what}.{n}{kind}" for what in ("keys", "values") for kind in kinds]


# --- reading


def read(path: Path, cache: PromptCache, owner: Owner) -> None:
    """Fill an empty cache with what the file holds, which is as if it had been computed.

    Raises:
        UsageError: the file is of another model, other settings or another type, or damaged,
            or no such file. The cache is then as it was.
    """
    metadata = _checked_metadata(path)
    if metadata.get("format") != FORMAT:
        raise UsageError(f"{path} holds no keys and values that this version reads; {_INSTEAD}")
    if metadata.get("model") != _model_of(owner):
        raise UsageError(f"{path} is of another model; {_INSTEAD}")
    if metadata.get("dtype") != STORED_AS[owner.dtype]:
        raise UsageError(f"{path} was computed in {metadata.get('dtype')}, not as here; {_INSTEAD}")
    try:
        kv = KVSettings(**json.loads(metadata["kv"]))
        tokens, gap = json.loads(metadata["tokens"]), json.loads(metadata["gap"])
    except (KeyError, TypeError, ValueError, RecursionError, UsageError):
        raise UsageError(_damaged(path)) from None
    if kv != cache.kv:
        raise UsageError(f"{path} was made with {kv}; give the same, or name another file")
    if not _is_sane(tokens, gap, cache, owner):
        raise UsageError(_damaged(path))
    _take_over(path, cache, tokens, gap, owner)


_INSTEAD = "delete it or name another file"


def _damaged(path: Path) -> str:
    return f"{path} is damaged or holds no keys and values; {_INSTEAD}"


def _checked_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file whose sizes and checksum are right."""
    try:
        spans = read_header(path)
        last = spans.get(CHECKSUM)
        if last is None or last.nbytes != 4 or last.offset + 4 != path.stat().st_size:
            raise UsageError(_damaged(path))
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            metadata: dict[str, str] = json.loads(file.read(length)).get("__metadata__") or {}
            if _checksum(file, last.offset) != int.from_bytes(file.read(4), "little"):
                raise UsageError(_damaged(path))
    except (OSError, ModelError):
        raise UsageError(_damaged(path)) from None
    return metadata


def _checksum(file: BinaryIO, end: int) -> int:
    """Of the first ``end`` bytes; the file then stands behind them."""
    file.seek(0)
    checksum, left = 0, end
    while left and (block := file.read(min(BLOCK, left))):
        checksum = zlib.crc32(block, checksum)
        left -= len(block)
    return checksum


def _is_sane(tokens: Any, gap: Any, cache: PromptCache, owner: Owner) -> bool:
    """Whether the text and what was left out of it can be what a cache came to."""
    if not isinstance(tokens, list) or type(gap) is not int:
        return False
    layout, vocab = cache.layers[0].layout, owner.config.vocab_size
    if not tokens or not all(type(t) is int and 0 <= t < vocab for t in tokens):
        return False
    if not gap:
        return True
    window = layout.window
    return window is not None and 0 < gap <= len(tokens) - window - layout.sinks + 1


def _take_over(path: Path, cache: PromptCache, tokens: list[int], gap: int, owner: Owner) -> None:
    """Tensors into the layers, where all are there and of the right shape and type."""
    arrays: dict[str, mx.array] = mx.load(str(path), format="safetensors")  # type: ignore[assignment]
    del arrays[CHECKSUM]
    wanted = _wanted(cache.layers, len(tokens) - gap, owner)
    if {name: (array.shape, array.dtype) for name, array in arrays.items()} != wanted:
        raise UsageError(_damaged(path))
    mx.eval(arrays)
    for n, layer in enumerate(cache.layers):
        layer.parts = [arrays[name] for name in _names(layer, n)]
        layer.offset, layer.gap = len(tokens), gap
    cache.tokens = tokens


def _wanted(
    layers: list[LayerKV], held: int, owner: Owner
) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
    """Shape and type of every tensor of a file, but for the checksum."""
    config = owner.config
    token = mx.zeros((1, config.num_key_value_heads, 1, config.head_dim), owner.dtype)
    example = LayerKV(layers[0].layout)
    example.update_and_fetch(token, token)
    return {
        name: ((*part.shape[:2], held, part.shape[3]), part.dtype)
        for n, layer in enumerate(layers)
        for name, part in zip(_names(layer, n), example.parts, strict=True)
    }
