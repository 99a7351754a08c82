"""GPTQ and AWQ checkpoints written from the formats' description: one code at a time, slowly.

Shares nothing with the readers. A matrix is quantized to the nearest of its groups' levels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import MLX_NAME, Raw, encode, random_weights, write_index, write_safetensors

from mlx_mixtral.config import ModelConfig

Array = np.ndarray


@dataclass(frozen=True)
class Quantized:
    """weight[o, i] = scales[o, g] * (codes[o, i] - zeros[o, g]) with g = groups[i]."""

    bits: int
    codes: Array
    scales: Array
    zeros: Array
    groups: Array

    @property
    def weights(self) -> Array:
        """In float64: exact."""
        scales = self.scales.astype(np.float64)[:, self.groups]
        return scales * (self.codes.astype(np.float64) - self.zeros[:, self.groups])


def quantize(weights: Array, bits: int, groups: Array, *, symmetric: bool = True) -> Quantized:
    """The group of each column is given; the scales are float16."""
    top, count = (1 << bits) - 1, int(groups.max()) + 1
    scales = np.empty((len(weights), count), np.float16)
    zeros = np.empty((len(weights), count), np.int64)
    codes = np.empty(weights.shape, np.int64)
    for g in range(count):
        block = weights[:, groups == g]
        if symmetric:
            scales[:, g] = 2 * abs(block).max(1) / top
            zeros[:, g] = 1 << (bits - 1)
        else:
            low, high = np.minimum(block.min(1), 0), np.maximum(block.max(1), 0)
            scales[:, g] = (high - low) / top
            zeros[:, g] = np.clip(np.rint(-low / scales[:, g]), 0, top)
        steps = np.rint(block / scales[:, g : g + 1].astype(np.float64))
        codes[:, groups == g] = np.clip(steps + zeros[:, g : g + 1], 0, top)
    return Quantized(bits, codes, scales, zeros, groups)


def stream(values: Array, bits: int) -> list[int]:
    """Values as one string of bits, the first value lowest, cut into words of 32."""
    text = "".join(format(int(value), f"0{bits}b") for value in reversed(values))
    whole = int(text, 2)
    return [whole >> 32 * i & 0xFFFFFFFF for i in range(len(text) // 32)]


def columns(values: Array, bits: int) -> Array:
    """``stream`` down each column."""
    return np.array([stream(column, bits) for column in values.T], np.uint32).T


def gptq_arrays(q: Quantized, *, v2: bool = False, g_idx: bool = True) -> dict[str, Array]:
    zeros = q.zeros if v2 else (q.zeros - 1) % (1 << q.bits)
    arrays = {
        "qweight": columns(q.codes.T, q.bits).view(np.int32),
        "qzeros": columns(zeros, q.bits).T.copy().view(np.int32),
        "scales": q.scales.T,
    }
    return arrays | ({"g_idx": q.groups.astype(np.int32)} if g_idx else {})


def awq_words(values: Array) -> Array:
    """Eight neighbours of a row in a word: those with even numbers first."""
    words = np.zeros((len(values), values.shape[1] // 8), np.uint32)
    for row, line in enumerate(values):
        for c in range(words.shape[1]):
            eight = [int(v) for v in line[8 * c : 8 * c + 8]]
            words[row, c] = stream(np.array(eight[0::2] + eight[1::2]), 4)[0]
    return words


def awq_arrays(q: Quantized) -> dict[str, Array]:
    return {
        "qweight": awq_words(q.codes.T).view(np.int32),
        "qzeros": awq_words(q.zeros.T).view(np.int32),
        "scales": q.scales.T,
    }


def in_groups(columns: int, size: int) -> Array:
    """Groups of ``size`` columns in order; -1: all of them."""
    return np.array([i // size if size > 0 else 0 for i in range(columns)])


def in_disorder(columns: int, size: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).permutation(in_groups(columns, size))


# --- whole checkpoints


Packer = Callable[[str, Array], Quantized | None]


def quantize_model(
    config: ModelConfig, pack: Packer
) -> tuple[dict[str, Array], dict[str, Quantized]]:
    """Random weights, as they are and quantized: those for which ``pack`` (path, values) does."""
    weights, quantized = random_weights(config), {}
    for name in list(weights):
        if q := pack(name.removesuffix(".weight"), weights[name]):
            quantized[name.removesuffix(".weight")] = q
            del weights[name]
    return weights, quantized


def linear(bits: int, size: int, *, symmetric: bool = True, order: bool = False) -> Packer:
    """What the programs do: every matrix but embeddings, router and head."""

    def pack(path: str, values: Array) -> Quantized | None:
        if values.ndim < 2 or path.endswith((".gate", "lm_head", "embed_tokens")):
            return None
        groups = (in_disorder if order else in_groups)(values.shape[1], size)
        return quantize(values, bits, groups, symmetric=symmetric)

    return pack


def tensors(
    weights: Mapping[str, Array],
    quantized: Mapping[str, Quantized],
    arrays: Callable[[Quantized], Mapping[str, Array]],
) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """A checkpoint's tensors as safetensors has them, floats in float16."""
    raw = {name: encode(values, "F16") for name, values in weights.items()}
    for path, q in quantized.items():
        for kind, values in arrays(q).items():
            dtype = "I32" if values.dtype.kind == "i" else "F16"
            raw[f"{path}.{kind}"] = encode(values, dtype)
    return raw


def write(
    folder: Path,
    config: ModelConfig,
    raw: Raw,
    settings: Mapping[str, Any] | None,
    *,
    shards: int = 1,
    file: str = "model",
) -> Path:
    """The folder. Tensors go round the shards, so that those of one matrix lie in several."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = config.to_hf() | ({"quantization_config": dict(settings)} if settings else {})
    (folder / "config.json").write_text(json.dumps(entries))
    if shards == 1:
        write_safetensors(folder / f"{file}.safetensors", raw)
        return folder
    names, weight_map = sorted(raw), {}
    for i in range(shards):
        shard = f"{file}-{i + 1:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / shard, {name: raw[name] for name in names[i::shards]})
        weight_map |= dict.fromkeys(names[i::shards], shard)
    write_index(folder, weight_map)
    if file != "model":
        default = folder / "model.safetensors.index.json"
        default.rename(folder / f"{file}.safetensors.index.json")
    return folder


def place(path: str) -> tuple[str, int | None]:
    """Where a module of a checkpoint goes: its canonical path, and the number of its expert."""
    prefix, experts, rest = path.partition("experts.")
    if not experts:
        return path, None
    number, w = rest.split(".")
    return f"{prefix}switch_mlp.{MLX_NAME[w]}", int(number)
