"""Mistral's own files and torch's archives, made without torch: pickles opcode by opcode."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_mixtral.config import ModelConfig

Array = np.ndarray
Raw = Mapping[str, tuple[str, tuple[int, ...], bytes]]  # name -> (dtype, shape, bytes)

STORAGE = {"BF16": "BFloat16Storage", "F16": "HalfStorage", "F32": "FloatStorage"}
WIDTH = {"BF16": 2, "F16": 2, "F32": 4}

# --- pickles: every function gives the opcodes that put one value on the stack


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def flag(value: bool) -> bytes:
    return b"\x88" if value else b"\x89"


def several(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def numbers(*values: int) -> bytes:
    return several(*(number(value) for value in values))


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + several(*arguments) + b"R"


def persistent(*values: bytes) -> bytes:
    return several(*values) + b"Q"


def mapping(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def program(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def storage(key: str, count: int, kind: str = "BFloat16Storage") -> bytes:
    return persistent(text("storage"), name("torch", kind), text(key), text("cpu"), number(count))


def tensor(kept: bytes, size: Sequence[int], stride: Sequence[int], offset: int = 0) -> bytes:
    hooks = call(name("collections", "OrderedDict"))
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, kept, number(offset), numbers(*size), numbers(*stride), flag(False), hooks)


# --- archives


def write_archive(
    file: Path, pickle: bytes, storages: Mapping[str, bytes], **others: bytes
) -> Path:
    """An archive such as torch.save writes; ``others`` are further entries."""
    entries = {"data.pkl": pickle, "byteorder": b"little", **others}
    entries |= {f"data/{key}": data for key, data in storages.items()}
    with zipfile.ZipFile(file, "w") as archive:
        for path, data in (entries | {"version": b"3\n"}).items():
            archive.writestr(f"archive/{path}", data)
    return file


def write_pth(file: Path, tensors: Raw) -> Path:
    """A checkpoint: a mapping of tensors that lie row by row, each in a storage of its own."""
    items, storages = {}, {}
    for key, (path, (dtype, shape, data)) in enumerate(tensors.items()):
        stride = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
        kept = storage(str(key), len(data) // WIDTH[dtype], STORAGE[dtype])
        items[path] = tensor(kept, shape, stride)
        storages[str(key)] = data
    return write_archive(file, program(mapping(items)), storages)


def write_zip64(file: Path, entries: Sequence[tuple[str, int, bytes]]) -> Path:
    """An archive of any size in no time: each entry is a hole, then some bytes.

    All sizes and offsets are 64 bits wide, in the entries' own headers, the directory, and its
    end.
    """
    directory = b""
    with file.open("wb") as out:
        for path, hole, data in entries:
            begin, size, stored = out.tell(), hole + len(data), path.encode()
            extra = struct.pack("<2H2Q", 1, 16, size, size)
            head = struct.pack("<5H3I", 45, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF)
            out.write(b"PK\3\4" + head + struct.pack("<2H", len(stored), len(extra)))
            out.write(stored + extra)
            out.seek(hole, 1)
            out.write(data)
            extra = struct.pack("<2H3Q", 1, 24, size, size, begin)
            tail = struct.pack("<5H2I", len(stored), len(extra), 0, 0, 0, 0, 0xFFFFFFFF)
            directory += b"PK\1\2" + struct.pack("<H", 45) + head + tail + stored + extra
        begin, count = out.tell(), len(entries)
        out.write(directory)
        at = out.tell()
        size = len(directory)
        out.write(b"PK\6\6" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, count, count, size, begin))
        out.write(b"PK\6\7" + struct.pack("<IQI", 0, at, 1))
        out.write(b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0))
    return file


def cut(file: Path, names: Sequence[str], at: Sequence[int]) -> Path:
    """Replace ``file`` by plain slices of it, which begin at 0 and at each offset."""
    data = file.read_bytes()
    file.unlink()
    bounds = [0, *at, len(data)]
    for piece, begin, end in zip(names, bounds[:-1], bounds[1:], strict=True):
        (file.parent / piece).write_bytes(data[begin:end])
    return file.parent


# --- Mistral's names

_LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
_TOP = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
}


def native(weights: Mapping[str, Array], config: ModelConfig) -> dict[str, Array]:
    """Hugging Face's tensors as Mistral has them: other names, neighbours paired for RoPE."""
    out = {}
    for path, values in weights.items():
        stem = path.removesuffix(".weight")
        if stem.endswith(("q_proj", "k_proj")):
            values = paired(values, config.head_dim)
        if stem.startswith("model.layers."):
            _, _, layer, rest = stem.split(".", 3)
            rest = _LAYER.get(rest) or rest.replace("block_sparse_moe", "feed_forward")
            out[f"layers.{layer}.{rest}.weight"] = values
        else:
            out[f"{_TOP[stem]}.weight"] = values
    return out


def paired(values: Array, head_dim: int) -> Array:
    """Rows i and i + half of each head become 2i and 2i + 1."""
    half = head_dim // 2
    order = [
        head + i + part * half
        for head in range(0, len(values), head_dim)
        for i in range(half)
        for part in (0, 1)
    ]
    return values[order]


def params(config: ModelConfig) -> dict[str, Any]:
    """params.json."""
    settings: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "max_seq_len": config.max_position_embeddings,
    }
    if config.is_moe:
        settings["moe"] = {
            "num_experts_per_tok": config.num_experts_per_tok,
            "num_experts": config.num_local_experts,
        }
    return settings


def write_params(folder: Path, config: ModelConfig, file: str = "params.json", **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(params(config) | more))
    return folder
