"""A naive Mixtral and Mistral in NumPy float64: plain loops over what the papers say.

Shares nothing with the package: it reads the raw config.json and its own dict of tensors
under Hugging Face's names (one matrix an expert).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
Weights = Mapping[str, Array]


def logits(config: Mapping[str, Any], weights: Weights, ids: Array) -> Array:
    """Token ids [L] -> logits [L, vocabulary]."""
    eps = config.get("rms_norm_eps", 1e-5)
    x = [weights["model.embed_tokens.weight"][i] for i in ids]
    for n in range(config["num_hidden_layers"]):
        w = {k.removeprefix(f"model.layers.{n}."): v for k, v in weights.items()
             if k.startswith(f"model.layers.{n}.")}  # fmt: skip
        normed = [rms_norm(t, w["input_layernorm.weight"], eps) for t in x]
        x = [t + a for t, a in zip(x, attention(config, w, normed), strict=True)]
        normed = [rms_norm(t, w["post_attention_layernorm.weight"], eps) for t in x]
        x = [t + feed_forward(config, w, m) for t, m in zip(x, normed, strict=True)]
    head = "model.embed_tokens" if config.get("tie_word_embeddings") else "lm_head"
    out = [weights[f"{head}.weight"] @ rms_norm(t, weights["model.norm.weight"], eps) for t in x]
    return np.array(out)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x) + eps) * weight


def attention(config: Mapping[str, Any], w: Weights, x: list[Array]) -> list[Array]:
    heads = config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    # Mixtral attends to everything, whatever an early config.json says.
    window = config.get("sliding_window") if config["model_type"] == "mistral" else None
    theta = rope_theta(config)

    def project(name: str, t: Array, h: int) -> Array:
        return (w[f"self_attn.{name}_proj.weight"] @ t)[h * dim : (h + 1) * dim]

    answers = []
    for position, token in enumerate(x):
        first = max(0, position - window + 1) if window else 0
        mixed = []
        for h in range(heads):
            shared = h // (heads // kv_heads)
            q = rotate(project("q", token, h), position, theta)
            scores, values = [], []
            for p in range(first, position + 1):
                k = rotate(project("k", x[p], shared), p, theta)
                scores.append(q @ k / np.sqrt(dim))
                values.append(project("v", x[p], shared))
            mixed.append(softmax(np.array(scores)) @ np.array(values))
        answers.append(w["self_attn.o_proj.weight"] @ np.concatenate(mixed))
    return answers


def rotate(x: Array, position: int, theta: float) -> Array:
    """RoPE on the pairs (i, i + half)."""
    half = len(x) // 2
    out = np.empty_like(x)
    for i in range(half):
        angle = position * theta ** (-i / half)
        out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
        out[i + half] = x[i] * np.sin(angle) + x[i + half] * np.cos(angle)
    return out


def feed_forward(config: Mapping[str, Any], w: Weights, x: Array) -> Array:
    if config["model_type"] == "mistral":
        gate, up, down = (w[f"mlp.{p}_proj.weight"] for p in ("gate", "up", "down"))
        return down @ (silu(gate @ x) * (up @ x))
    scores = w["block_sparse_moe.gate.weight"] @ x
    chosen = sorted(range(len(scores)), key=lambda e: (-scores[e], e))
    chosen = chosen[: config["num_experts_per_tok"]]
    y = np.zeros_like(x)
    for share, e in zip(softmax(scores[chosen]), chosen, strict=True):
        gate, down, up = (w[f"block_sparse_moe.experts.{e}.w{i}.weight"] for i in (1, 2, 3))
        y += share * (down @ (silu(gate @ x) * (up @ x)))
    return y


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def rope_theta(config: Mapping[str, Any]) -> float:
    return config.get("rope_theta") or config["rope_parameters"]["rope_theta"]


# --- files


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """The raw config, and the tensors in float64 under Hugging Face's names."""
    weights: dict[str, Array] = {}
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                values = decode(data[8 + length + begin : 8 + length + end], entry["dtype"])
                weights |= split_fused(name, values.reshape(entry["shape"]))
    return json.loads((folder / "config.json").read_text()), weights


def decode(data: bytes, dtype: str) -> Array:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float64)


def split_fused(name: str, values: Array) -> dict[str, Array]:
    """transformers 5's stacked experts under the older names."""
    moe = name.replace(".mlp.", ".block_sparse_moe.")
    prefix, _, kind = moe.rpartition(".")
    if kind == "gate_up_proj":
        half = values.shape[1] // 2
        parts = {"w1": values[:, :half], "w3": values[:, half:]}
    elif kind == "down_proj":
        parts = {"w2": values}
    else:
        return {moe if name.endswith("mlp.gate.weight") else name: values}
    return {
        f"{prefix}.{e}.{w}.weight": stack[e]
        for w, stack in parts.items()
        for e in range(len(stack))
    }
