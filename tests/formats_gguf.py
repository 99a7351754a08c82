"""Tiny GGUF files, written with the ``gguf`` package as llama.cpp's converters write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from sentencepiece import SentencePieceProcessor

from mlx_mixtral.config import ModelConfig

Array = np.ndarray

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
EXPERT = {"w1": "gate", "w2": "down", "w3": "up"}

# Where blocks have numbers in float16, for those types that the package cannot write.
HALVES = {
    Type.Q2_K: (80, 82), Type.Q3_K: (108,), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2),
    Type.Q6_K: (208,), Type.IQ2_XXS: (0,), Type.IQ2_XS: (0,), Type.IQ2_S: (0,),
    Type.IQ3_XXS: (0,), Type.IQ3_S: (0,), Type.IQ1_S: (0,), Type.IQ4_XS: (0,),
    Type.Q4_0: (0,), Type.Q4_1: (0, 2), Type.Q5_0: (0,), Type.Q5_1: (0, 2), Type.Q8_0: (0,),
    Type.IQ4_NL: (0,), Type.TQ1_0: (52,), Type.TQ2_0: (64,),
}  # fmt: skip


def random_blocks(kind: Type, rows: int, width: int, seed: int = 0) -> Array:
    """Blocks [rows, bytes] of any codes, with scales as models have them."""
    rng = np.random.default_rng(seed)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows * width // block, size), np.uint8)
    for offset in HALVES.get(kind, ()):
        scales = rng.uniform(1e-3, 1e-2, len(blocks)).astype("<f2")
        blocks[:, offset : offset + 2] = scales[:, None].view(np.uint8)
    if kind == Type.MXFP4:
        blocks[:, 0] = rng.integers(118, 126, len(blocks))
    if kind == Type.NVFP4:
        blocks[:, :4] = rng.integers(0, 0x7F, (len(blocks), 4))
    if kind == Type.IQ1_M:  # a float16 in pieces: the top four bits of four words
        words = blocks[:, 48:].view("<u2")
        bits = rng.uniform(1e-3, 1e-2, len(blocks)).astype("<f2").view("<u2")
        for i in range(4):
            words[:, i] = words[:, i] & 0x0FFF | (bits >> 4 * i & 15) << 12
    return blocks.reshape(rows, -1)


def encoded(values: Array, kind: Type) -> Array:
    """Values as the type stores them; random blocks of the same shape where nobody can."""
    if kind in (Type.F32, Type.F16):
        return values.astype(np.float32 if kind == Type.F32 else np.float16)
    try:
        return gguf.quants.quantize(values.astype(np.float32), kind)
    except NotImplementedError:
        rows = values.reshape(-1, values.shape[-1])
        return random_blocks(kind, *rows.shape).reshape(*values.shape[:-1], -1)


def interleave(weight: Array, heads: int) -> Array:
    """What llama.cpp's converters do to q and k of a Hugging Face checkpoint."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def tensors_of(config: ModelConfig, weights: Mapping[str, Array], *, stacked: bool = True):
    """A checkpoint under llama.cpp's names; stacked experts (2024), or one by one (2023)."""
    out: dict[str, Array] = {}
    stacks: dict[str, list[Array]] = {}
    for name, values in weights.items():
        if name in NAMES:
            out[NAMES[name]] = values
            continue
        _, _, layer, rest = name.removesuffix(".weight").split(".", 3)
        if rest in IN_LAYER:
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
            theirs = IN_LAYER[rest]
            ordered = interleave(values, heads[theirs]) if theirs in heads else values
            out[f"blk.{layer}.{theirs}.weight"] = ordered
            continue
        _, _, expert, w = rest.split(".")
        if stacked:
            stacks.setdefault(f"blk.{layer}.ffn_{EXPERT[w]}_exps.weight", []).append(values)
        else:
            out[f"blk.{layer}.ffn_{EXPERT[w]}.{expert}.weight"] = values
    return out | {name: np.stack(experts) for name, experts in stacks.items()}


def write_gguf(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, Array],
    kind: Callable[[str], Type] | Type = Type.F32,
    *,
    metadata: Mapping[str, Any] | None = None,
    vocabulary: Callable[[gguf.GGUFWriter], None] | None = None,
    per_piece: int = 0,
    bare_first: bool = False,
) -> dict[str, tuple[Type, Array]]:
    """Write ``tensors``, one-dimensional ones and the router in float32; returns what was stored.

    ``metadata`` adds keys, takes them out (None), or changes them. ``bare_first``: the first
    piece of a split set holds no tensors.
    """
    writer = gguf.GGUFWriter(
        path, "llama", split_max_tensors=per_piece, small_first_shard=bare_first
    )
    keys = {
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.attention.key_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        **({"llama.expert_count": config.num_local_experts} if config.is_moe else {}),
        **({"llama.expert_used_count": config.num_experts_per_tok} if config.is_moe else {}),
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_ids[0],
        **(metadata or {}),
    }
    for key, value in keys.items():
        if key == "general.architecture":
            writer.kv_data[0][key].value = value
        elif isinstance(value, str | bool):
            (writer.add_string if isinstance(value, str) else writer.add_bool)(key, value)
        elif value is not None:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    if vocabulary:
        vocabulary(writer)
    stored: dict[str, tuple[Type, Array]] = {}
    for name, values in tensors.items():
        one = kind if isinstance(kind, Type) else kind(name)
        one = Type.F32 if values.ndim == 1 or "gate_inp" in name else one
        stored[name] = one, encoded(values, one)
        writer.add_tensor(name, stored[name][1], raw_dtype=one)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def vocabulary_of(pieces: SentencePieceProcessor, **changes: Any) -> Callable[..., None]:
    """A SentencePiece model as llama.cpp's converters take it apart.

    They do not ask whether a piece is user-defined. ``changes``: ``scores`` or ``types`` (id ->
    other value), ``added`` ((text, type) behind the pieces), ``template``, ``model``.
    """

    def kind(i: int) -> int:
        tests = (
            (pieces.is_unknown, 2),
            (pieces.is_control, 3),
            (pieces.is_unused, 5),
            (pieces.is_byte, 6),
        )
        return next((number for test, number in tests if test(i)), 1)

    def add(writer: gguf.GGUFWriter) -> None:
        size, added = pieces.vocab_size(), changes.get("added", [])
        scores = {i: pieces.get_score(i) for i in range(size)} | changes.get("scores", {})
        types = {i: kind(i) for i in range(size)} | changes.get("types", {})
        writer.add_tokenizer_model(changes.get("model", "llama"))
        texts = [pieces.id_to_piece(i) for i in range(size)] + [text for text, _ in added]
        writer.add_token_list([text.encode() for text in texts])
        writer.add_token_scores([*scores.values(), *(-1000.0 for _ in added)])
        writer.add_token_types([*types.values(), *(kind for _, kind in added)])
        if template := changes.get("template"):
            writer.add_chat_template(template)

    return add
