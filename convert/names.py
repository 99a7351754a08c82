"""Foreign names to canonical ones, and the one RoPE permutation.

Unknown names are None; what to do about them is the reader's affair.
"""

import re
from dataclasses import dataclass

import mlx.core as mx

from mlx_mixtral.config import ModelConfig


@dataclass(frozen=True)
class Place:
    """Where a tensor belongs: module path, expert number or None, and ``kind``.

    ``kind`` is ``weight``, or ``scales`` or ``biases`` of a quantized matrix. A stack of
    experts in one tensor has no expert number.
    """

    path: str
    expert: int | None = None
    kind: str = "weight"


_TOP = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.gate": "block_sparse_moe.gate",
    "block_sparse_moe.gate": "block_sparse_moe.gate",
}
_EXPERT = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_NATIVE_LAYER = re.compile(r"layers\.(\d{1,4})\.(.+)")
_NATIVE_EXPERT = re.compile(r"feed_forward\.experts\.(\d{1,4})\.(w[123])")
_NATIVE_STACK = re.compile(r"block_sparse_moe\.(w[123])")


def native(name: str) -> Place | None:
    """Mistral's own names: ``layers.0.attention.wq.weight``.

    The stacks of ``consolidated.NN.pt`` end without ``.weight``: ``layers.0.block_sparse_moe.w1``.
    """
    stem, dot, kind = name.rpartition(".")
    if kind not in ("weight", "scales", "biases"):
        stem, kind = name, "weight"
    if stem in _TOP:
        return Place(_TOP[stem], None, kind) if dot else None
    if not (match := _NATIVE_LAYER.fullmatch(stem)):
        return None
    layer, rest = f"model.layers.{int(match[1])}", match[2]
    if rest in _LAYER:
        return Place(f"{layer}.{_LAYER[rest]}", None, kind)
    if match := _NATIVE_EXPERT.fullmatch(rest):
        path = f"{layer}.block_sparse_moe.switch_mlp.{_EXPERT[match[2]]}"
        return Place(path, int(match[1]), kind)
    if match := _NATIVE_STACK.fullmatch(rest):
        return Place(f"{layer}.block_sparse_moe.switch_mlp.{_EXPERT[match[1]]}", None, kind)
    return None


_GGUF_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_GGUF_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_exps": "block_sparse_moe.switch_mlp.gate_proj",
    "ffn_up_exps": "block_sparse_moe.switch_mlp.up_proj",
    "ffn_down_exps": "block_sparse_moe.switch_mlp.down_proj",
}
_GGUF_BLOCK = re.compile(r"blk\.(\d{1,4})\.(\w+)\.weight")
_GGUF_EXPERT = re.compile(r"blk\.(\d{1,4})\.ffn_(gate|up|down)\.(\d{1,4})\.weight")


def gguf(name: str) -> Place | None:
    """llama.cpp's names: ``blk.0.attn_q.weight``."""
    stem = name.removesuffix(".weight")
    if stem != name and stem in _GGUF_TOP:
        return Place(_GGUF_TOP[stem])
    if match := _GGUF_EXPERT.fullmatch(name):
        path = f"model.layers.{int(match[1])}.block_sparse_moe.switch_mlp.{match[2]}_proj"
        return Place(path, int(match[3]))
    if (match := _GGUF_BLOCK.fullmatch(name)) and match[2] in _GGUF_LAYER:
        return Place(f"model.layers.{int(match[1])}.{_GGUF_LAYER[match[2]]}")
    return None


_HF_EXPERT = re.compile(
    r"model\.layers\.(\d{1,4})\.block_sparse_moe\.experts\.(\d{1,4})\.(w[123])\.(\w+)"
)


def hugging_face(name: str) -> Place:
    """Hugging Face's names, one tensor an expert. ``kind`` is whatever the name ends in."""
    if match := _HF_EXPERT.fullmatch(name):
        path = f"model.layers.{int(match[1])}.block_sparse_moe.switch_mlp.{_EXPERT[match[3]]}"
        return Place(path, int(match[2]), match[4])
    path, _, kind = name.rpartition(".")
    return Place(path, None, kind)


# --- RoPE: Mistral's own files turn neighbours (0, 1), (2, 3), ...; Hugging Face and MLX turn
# i and i + half. The same rotation, if the rows of q and k are put in the other order.


def rope_heads(path: str, config: ModelConfig) -> int | None:
    """The number of heads whose rows RoPE turns, for q and k; None for every other matrix."""
    if path.endswith("self_attn.q_proj"):
        return config.num_attention_heads
    return config.num_key_value_heads if path.endswith("self_attn.k_proj") else None


def half_split(weight: mx.array, heads: int) -> mx.array:
    """Rows [heads x head_dim, ...] from interleaved to half-split order.

    Only rows move, so it holds for codes, scales and biases alike.
    """
    rows = weight.shape[0]
    pairs = weight.reshape(heads, rows // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(weight.shape)
