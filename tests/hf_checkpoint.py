"""Random Hugging Face checkpoints, written without torch or transformers."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx


@dataclass(frozen=True)
class Shape:
    """A model small enough for a test; ``num_local_experts`` 0 makes it a dense Mistral."""

    vocab_size: int = 320
    hidden_size: int = 256
    intermediate_size: int = 384
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    num_local_experts: int = 4
    tie_word_embeddings: bool = False


def tensors(shape: Shape, dtype: mx.Dtype = mx.bfloat16) -> dict[str, mx.array]:
    """A checkpoint as transformers 4 spells it: one tensor an expert, ``w1 w2 w3``."""
    s = shape
    d, f = s.hidden_size, s.intermediate_size
    kv = d // s.num_attention_heads * s.num_key_value_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (s.vocab_size, d)}
    for n in range(s.num_hidden_layers):
        layer = f"model.layers.{n}"
        for name, rows in (("q", d), ("k", kv), ("v", kv), ("o", d)):
            shapes[f"{layer}.self_attn.{name}_proj"] = (rows, d)
        shapes[f"{layer}.input_layernorm"] = shapes[f"{layer}.post_attention_layernorm"] = (d,)
        if s.num_local_experts:
            shapes[f"{layer}.block_sparse_moe.gate"] = (s.num_local_experts, d)
        else:
            shapes |= {f"{layer}.mlp.{name}_proj": (f, d) for name in ("gate", "up")}
            shapes[f"{layer}.mlp.down_proj"] = (d, f)
        for e in range(s.num_local_experts):
            expert = f"{layer}.block_sparse_moe.experts.{e}"
            shapes |= {f"{expert}.w1": (f, d), f"{expert}.w2": (d, f), f"{expert}.w3": (f, d)}
    shapes["model.norm"] = (d,)
    if not s.tie_word_embeddings:
        shapes["lm_head"] = (s.vocab_size, d)
    keys = mx.random.split(mx.random.key(7), len(shapes))
    return {
        f"{name}.weight": (mx.random.normal(of, key=key) * (0.5 if len(of) == 1 else 0.1)).astype(
            dtype
        )
        for (name, of), key in zip(shapes.items(), keys, strict=True)
    }


def fused(weights: dict[str, mx.array], shape: Shape) -> dict[str, mx.array]:
    """The same weights as transformers 5 holds them: experts stacked, gate above up."""
    weights = dict(weights)
    for n in range(shape.num_hidden_layers):
        old, new = f"model.layers.{n}.block_sparse_moe", f"model.layers.{n}.mlp"

        def pop(e: int, w: str, old: str = old) -> mx.array:
            return weights.pop(f"{old}.experts.{e}.{w}.weight")

        experts = range(shape.num_local_experts)
        weights[f"{new}.experts.gate_up_proj"] = mx.stack(
            [mx.concatenate([pop(e, "w1"), pop(e, "w3")]) for e in experts]
        )
        weights[f"{new}.experts.down_proj"] = mx.stack([pop(e, "w2") for e in experts])
        weights[f"{new}.gate.weight"] = weights.pop(f"{old}.gate.weight")
    return weights


def write(folder: Path, shape: Shape, weights: dict[str, mx.array], shards: int = 1) -> Path:
    """Write a checkpoint of ``shards`` files with its index and config.json to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(weights)
    weight_map = {}
    for i in range(shards):
        file = (
            f"model-{i + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        )
        mine = names[i::shards]  # neighbours in different files, the hard case
        mx.save_safetensors(str(folder / file), {n: weights[n] for n in mine}, {"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(shape)))
    return folder


def config(shape: Shape) -> dict[str, object]:
    """config.json as transformers 4 writes it."""
    moe = shape.num_local_experts > 0
    settings = asdict(shape)
    if not moe:
        del settings["num_local_experts"]
    return settings | {
        "architectures": ["MixtralForCausalLM" if moe else "MistralForCausalLM"],
        "model_type": "mixtral" if moe else "mistral",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "max_position_embeddings": 512,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **({"num_experts_per_tok": 2} if moe else {}),
    }
