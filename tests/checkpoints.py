"""Tiny random checkpoints in every layout that the package reads, made without torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_mixtral.config import ModelConfig, Quantization, QuantSpec

Array = np.ndarray
Raw = Mapping[str, tuple[str, tuple[int, ...], bytes]]  # name -> (dtype, shape, bytes)

MLX_NAME = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def tiny_config(**changes: Any) -> ModelConfig:
    """A Mixtral of some 60,000 parameters; ``num_local_experts=0`` makes a dense Mistral."""
    shape = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 4,
        "max_position_embeddings": 256,
    }
    return ModelConfig(**(shape | changes))


def hf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint under Hugging Face's names, one matrix an expert."""
    d, f, hd = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * hd, config.num_key_value_heads * hd
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (d,),
        "self_attn.q_proj": (q, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, q),
        "post_attention_layernorm": (d,),
    }
    if config.is_moe:
        layer["block_sparse_moe.gate"] = (config.num_local_experts, d)
        for e in range(config.num_local_experts):
            expert = f"block_sparse_moe.experts.{e}"
            layer |= {f"{expert}.w1": (f, d), f"{expert}.w2": (d, f), f"{expert}.w3": (f, d)}
    else:
        layer |= {"mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (config.vocab_size, d)}
    for n in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{n}.{path}": shape for path, shape in layer.items()}
    shapes["model.norm"] = (d,)
    if not config.tie_word_embeddings:
        shapes["lm_head"] = (config.vocab_size, d)
    return {f"{path}.weight": shape for path, shape in shapes.items()}


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Array]:
    """float32 tensors of ``hf_shapes``, of a size that keeps activations near 1."""
    rng = np.random.default_rng(seed)
    return {name: _random(rng, name, shape) for name, shape in hf_shapes(config).items()}


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Array:
    if "norm" in name:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    values = rng.standard_normal(shape, dtype=np.float32)
    unit = "embed_tokens" in name or "block_sparse_moe.gate" in name
    return values if unit else values * np.float32(1.5 * shape[-1] ** -0.5)


# --- layouts


def write_config(folder: Path, config: ModelConfig) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_hf(), indent=2))
    return folder


def write_hf(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, Array] | None = None,
    *,
    dtype: str = "F32",
    shards: int = 1,
) -> Path:
    """A Hugging Face checkpoint, one tensor an expert, with an index when there are shards."""
    weights = random_weights(config) if weights is None else weights
    write_config(folder, config)
    tensors = {name: encode(values, dtype) for name, values in weights.items()}
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    names, weight_map = sorted(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / file, {name: tensors[name] for name in names[i::shards]})
        weight_map |= dict.fromkeys(names[i::shards], file)
    write_index(folder, weight_map)
    return folder


def write_mlx(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, Array] | None = None,
    *,
    quantized: Callable[[str], bool] = lambda path: "norm" not in path,
    era: str = "C",
) -> Path:
    """An MLX folder as of May 2024 (era C: stacked experts) or January 2024 (era B: one by one).

    Where the configuration has a quantization, the matrices that ``quantized`` names (by
    module path) are packed as it says.
    """
    weights = random_weights(config) if weights is None else weights
    arrays = {name: mx.array(values) for name, values in weights.items()}
    arrays = stack_experts(arrays, config) if era == "C" else arrays
    out: dict[str, mx.array] = {}
    for name, values in arrays.items():
        path = name.removesuffix(".weight")
        spec = config.quantization.of(path) if config.quantization and quantized(path) else None
        out |= pack(path, values, spec) if spec else {name: values}
    write_config(folder, config)
    if era == "C":
        mx.save_safetensors(str(folder / "model.safetensors"), out, {"format": "mlx"})
        return folder
    names = sorted(out)
    for i in range(2):
        part = {name: out[name] for name in names[i::2]}
        mx.save_safetensors(str(folder / f"weights.{i:02}.safetensors"), part)
    return folder


def write_zeros(folder: Path, config: ModelConfig) -> int:
    """A float32 Hugging Face checkpoint that is one hole: any size in no time. Its size."""
    header, end = {}, 0
    for name, shape in hf_shapes(config).items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    file = write_config(folder, config) / "model.safetensors"
    file.write_bytes(with_header(header))
    os.truncate(file, file.stat().st_size + end)
    return end


def stack_experts(arrays: Mapping[str, mx.array], config: ModelConfig) -> dict[str, mx.array]:
    out = {name: values for name, values in arrays.items() if ".experts." not in name}
    for n in range(config.num_hidden_layers if config.is_moe else 0):
        moe = f"model.layers.{n}.block_sparse_moe"
        for w, name in MLX_NAME.items():
            parts = [
                arrays[f"{moe}.experts.{e}.{w}.weight"] for e in range(config.num_local_experts)
            ]
            out[f"{moe}.switch_mlp.{name}.weight"] = mx.stack(parts)
    return out


def fused(weights: Mapping[str, Array], config: ModelConfig) -> dict[str, Array]:
    """The weights as transformers 5 holds them: experts stacked, gate above up."""
    weights = dict(weights)
    experts = range(config.num_local_experts)
    for n in range(config.num_hidden_layers):
        old, new = f"model.layers.{n}.block_sparse_moe", f"model.layers.{n}.mlp"
        w1, w2, w3 = (
            np.stack([weights.pop(f"{old}.experts.{e}.{w}.weight") for e in experts])
            for w in ("w1", "w2", "w3")
        )
        weights[f"{new}.experts.gate_up_proj"] = np.concatenate([w1, w3], axis=1)
        weights[f"{new}.experts.down_proj"] = w2
        weights[f"{new}.gate.weight"] = weights.pop(f"{old}.gate.weight")
    return weights


def pack(path: str, values: mx.array, spec: QuantSpec) -> dict[str, mx.array]:
    parts = mx.quantize(values, group_size=spec.group_size, bits=spec.bits, mode=spec.mode)
    return {f"{path}.{k}": v for k, v in zip(("weight", "scales", "biases"), parts, strict=False)}


def quantization(bits: int, group_size: int = 64, mode: str = "affine", **overrides: Any):
    """A ``Quantization``; overrides are bits by module path, None for 16 bit."""
    specs = {p: b and QuantSpec(b, group_size, mode) for p, b in overrides.items()}
    return Quantization(QuantSpec(bits, group_size, mode), specs)


# --- files


def encode(values: Array, dtype: str = "F32") -> tuple[str, tuple[int, ...], bytes]:
    """Values as safetensors stores them; BF16 rounds to nearest, ties to even."""
    if dtype == "BF16":
        bits = values.astype("<f4").view("<u4").astype(np.uint64)
        stored = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    else:
        kinds = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I32": "<i4", "U32": "<u4"}
        stored = values.astype(kinds[dtype])
    return dtype, values.shape, stored.tobytes()


def safetensors_bytes(tensors: Raw, *, metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        ends = [offset, offset + len(data)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": ends}
        offset = ends[1]
    return with_header(header, b"".join(data for _, _, data in tensors.values()))


def with_header(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file of any header, honest or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_safetensors(path: Path, tensors: Raw) -> None:
    path.write_bytes(safetensors_bytes(tensors, metadata={"format": "pt"}))


def write_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    index = {"metadata": {"total_size": 0}, "weight_map": dict(weight_map)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def random_ids(config: ModelConfig, batch: int = 1, length: int = 24, seed: int = 0) -> mx.array:
    rng = np.random.default_rng(seed)
    return mx.array(rng.integers(3, config.vocab_size, (batch, length)))


def relative_difference(ours: Any, theirs: Any) -> float:
    """The largest difference, as a share of the largest value."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(abs(a - b).max() / abs(b).max())


def in_chunks(length: int, sizes: Iterable[int]) -> list[slice]:
    """Slices that cover ``length`` in steps of the given sizes, the last one repeated."""
    slices, start, step = [], 0, 0
    steps = iter(sizes)
    while start < length:
        step = next(steps, step)
        slices.append(slice(start, min(start + step, length)))
        start += step
    return slices
