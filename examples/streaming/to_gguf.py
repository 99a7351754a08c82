"""The weights of a 4-bit MLX folder as GGUF, for llama.cpp to be measured on the same ones.

    python examples/streaming/to_gguf.py MODEL model.gguf

Groups of 64 become two blocks each of type Q4_1: the same codes, the scales in float16 (bfloat16
scales below 6e-5 lose bits by it). The vocabulary is a dummy: this is for feeding token ids.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np

from mlx_mixtral.config import read_config
from mlx_mixtral.weights import open_weights

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.switch_mlp.gate_proj": "ffn_gate_exps",
    "block_sparse_moe.switch_mlp.up_proj": "ffn_up_exps",
    "block_sparse_moe.switch_mlp.down_proj": "ffn_down_exps",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def main(folder: Path, out: Path) -> None:
    config, writer = read_config(folder), gguf.GGUFWriter(out, "llama", use_temp_file=True)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_vocab_size(config.vocab_size)
    tokens = ["<unk>", "<s>", "</s>", *(f"<{n}>" for n in range(3, config.vocab_size))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3] + [1] * (len(tokens) - 3))
    tensors = open_weights(folder, config)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for path in sorted(name.removesuffix(".weight") for name in tensors if "weight" in name):
        if path.startswith("model.layers."):
            _, _, layer, rest = path.split(".", 3)
            name = NAMES[rest]
            full = f"blk.{layer}.{name}.weight"
        else:
            name = NAMES[path]
            full = f"{name}.weight"
        if f"{path}.scales" not in tensors:
            values = np.array(tensors[f"{path}.weight"].read().astype(mx.float32))
            writer.add_tensor(full, values)
            continue
        parts = [tensors[f"{path}.{kind}"].read() for kind in ("weight", "scales", "biases")]
        if name in heads:
            parts = [interleaved(part, heads[name]) for part in parts]
        writer.add_tensor(full, q4_1(*parts), raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(rows: mx.array, heads: int) -> mx.array:
    """llama.cpp turns neighbouring pairs, Hugging Face's layout the halves of a head."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def q4_1(weight: mx.array, scales: mx.array, biases: mx.array) -> np.ndarray:
    """Blocks of 32: a float16 scale, a float16 minimum, and 16 bytes of codes, byte n with the
    codes n and n + 16."""
    lead, packed = weight.shape[:-1], np.array(weight)
    codes = packed.view(np.uint8).reshape(-1, 16)
    codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(-1, 32)
    blocks = np.empty((len(codes), 20), np.uint8)
    for at, values in ((0, scales), (2, biases)):
        halves = np.repeat(np.array(values.astype(mx.float32)), 2, axis=-1).astype(np.float16)
        blocks[:, at : at + 2] = halves.reshape(-1, 1).view(np.uint8)
    blocks[:, 4:] = codes[:, :16] | codes[:, 16:] << 4
    return blocks.reshape(*lead, -1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
