"""The demo model in PyTorch: a small Mixtral to train, and its Hugging Face form.

Only the trainer needs it; ``mlx_mixtral`` runs what ``export`` writes. Shapes: B rows, S tokens,
D width, H heads, E experts, F width of an expert.
"""

import json
import math
import threading
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

# The names are those of Hugging Face's config.json.
SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}
WIDTH, LAYERS = SHAPE["hidden_size"], SHAPE["num_hidden_layers"]
HEADS, KEY_HEADS = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"]
EXPERTS, CHOSEN = SHAPE["num_local_experts"], SHAPE["num_experts_per_tok"]
EXPERT_WIDTH, HEAD_WIDTH = SHAPE["intermediate_size"], 64
BOS, EOS = 1, 2
ANSWER_LIMIT = 160  # tokens
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), SHAPE["rms_norm_eps"])


class Linear(nn.Linear):
    """Kept in float32, multiplied in the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def linear(width_in: int, width_out: int, scale: float = 1.0) -> Linear:
    layer = Linear(width_in, width_out, bias=False)
    nn.init.normal_(layer.weight, std=scale / math.sqrt(width_in))
    return layer


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in Hugging Face's half-split layout."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = linear(WIDTH, HEADS * HEAD_WIDTH)
        self.k_proj = linear(WIDTH, KEY_HEADS * HEAD_WIDTH)
        self.v_proj = linear(WIDTH, KEY_HEADS * HEAD_WIDTH)
        self.o_proj = linear(HEADS * HEAD_WIDTH, WIDTH, 1 / math.sqrt(2 * LAYERS))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = x.shape

        def heads(projected: Tensor, number: int) -> Tensor:
            return projected.view(rows, length, number, HEAD_WIDTH).transpose(1, 2)

        q = rotate(heads(self.q_proj(x), HEADS), cos, sin)
        k = rotate(heads(self.k_proj(x), KEY_HEADS), cos, sin)
        v = heads(self.v_proj(x), KEY_HEADS)
        k, v = (t.repeat_interleave(HEADS // KEY_HEADS, 1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))


class SparseMoe(nn.Module):
    """Top-2 of the router logits, then softmax. Each expert sees its own tokens only."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = linear(WIDTH, EXPERTS)
        # w1 (gate projection) and w3 (up projection) of each expert, [E, 2, F, D]
        self.w13 = nn.Parameter(torch.randn(EXPERTS, 2, EXPERT_WIDTH, WIDTH) / math.sqrt(WIDTH))
        self.w2 = nn.Parameter(
            torch.randn(EXPERTS, WIDTH, EXPERT_WIDTH) / math.sqrt(EXPERT_WIDTH * 2 * LAYERS)
        )
        self.of_thread = threading.local()  # the trainer runs one model in several threads

    def forward(self, x: Tensor) -> Tensor:
        shape, x = x.shape, x.reshape(-1, WIDTH)
        logits = self.gate(x).float()
        top, chosen = logits.topk(CHOSEN, -1)
        weight = top.softmax(-1)
        expert = chosen.reshape(-1)
        order = expert.argsort(stable=True)  # the pairs of token and expert, by expert
        count = torch.bincount(expert, minlength=EXPERTS)
        token = order // CHOSEN
        inputs = x[token].split(count.tolist())
        outputs = torch.cat([self.expert(e, tokens) for e, tokens in enumerate(inputs)])
        outputs = outputs * weight.reshape(-1)[order, None].to(x.dtype)
        # Switch Transformer's load-balancing loss (arXiv:2101.03961), 1 when the load is even.
        share = count / expert.numel()
        self.of_thread.balance = EXPERTS * (logits.softmax(-1).mean(0) * share).sum()
        return torch.zeros_like(x).index_add(0, token, outputs).view(shape)

    def expert(self, number: int, x: Tensor) -> Tensor:
        w13, w2 = self.w13[number].flatten(0, 1), self.w2[number]
        gate, up = F.linear(x, w13.to(x.dtype)).chunk(2, -1)
        return F.linear(F.silu(gate) * up, w2.to(x.dtype))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = Norm(WIDTH)
        self.post_attention_layernorm = Norm(WIDTH)
        self.self_attn = Attention()
        self.block_sparse_moe = SparseMoe()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.block_sparse_moe(self.post_attention_layernorm(x))


class Mixtral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(SHAPE["vocab_size"], WIDTH)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm(WIDTH)
        self.lm_head = linear(WIDTH, SHAPE["vocab_size"], 0.3)

    def forward(self, ids: Tensor, mask: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The hidden states [B, S, D] before ``lm_head``, for token ids [B, S]."""
        position = torch.arange(ids.shape[1]).float()
        frequency = SHAPE["rope_theta"] ** (-torch.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH)
        angle = torch.outer(position, frequency).repeat(1, 2)
        x, cos, sin = (t.to(dtype) for t in (self.embed_tokens(ids), angle.cos(), angle.sin()))
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.norm(x)

    def balance(self) -> Tensor:
        """The mean load-balancing loss of the layers in this thread's last forward pass."""
        return sum(layer.block_sparse_moe.of_thread.balance for layer in self.layers) / LAYERS


def hf_name(name: str) -> str:
    return name if name.startswith("lm_head") else "model." + name


def expert_names(name: str) -> list[list[str]]:
    """The Hugging Face names of a stacked tensor: one list an expert, one name a matrix."""
    prefix, _, leaf = name.rpartition(".")
    matrices = ("w1", "w3") if leaf == "w13" else (leaf,)
    return [
        [f"{hf_name(prefix)}.experts.{expert}.{matrix}.weight" for matrix in matrices]
        for expert in range(EXPERTS)
    ]


def to_hf(model: Mixtral) -> dict[str, Tensor]:
    tensors = {}
    for name, value in model.state_dict().items():
        if name.endswith((".w13", ".w2")):
            for names, matrices in zip(expert_names(name), value, strict=True):
                stacked = matrices.view(len(names), -1, matrices.shape[-1])
                tensors.update(zip(names, stacked, strict=True))
        else:
            tensors[hf_name(name)] = value
    return {k: v.detach().to(torch.bfloat16).contiguous() for k, v in tensors.items()}


def read_hf(model: Mixtral, folder: Path) -> None:
    """Loads what ``export`` wrote."""
    tensors = load_file(str(folder / "model.safetensors"))
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith((".w13", ".w2")):
            rows = [torch.stack([tensors[n] for n in names]) for names in expert_names(name)]
            state[name] = torch.stack(rows).view(value.shape).float()
        else:
            state[name] = tensors[hf_name(name)].float()
    model.load_state_dict(state)


def export(model: Mixtral, folder: Path, context: int) -> None:
    """Writes the weights in bfloat16 and the configuration of a Hugging Face Mixtral."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "model.safetensors.tmp"
    save_file(to_hf(model), str(unfinished), metadata={"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.rename(folder / "model.safetensors")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    ids = {"bos_token_id": BOS, "eos_token_id": EOS}
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        **SHAPE,
        "head_dim": HEAD_WIDTH,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "max_position_embeddings": context,
        "initializer_range": 0.02,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
        "router_jitter_noise": 0.0,
        **ids,
        "torch_dtype": "bfloat16",
    }
    tokenizer = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        **special,
        "pad_token": None,
        "legacy": True,
        "sp_model_kwargs": {},
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {**ids, "do_sample": False, "max_new_tokens": ANSWER_LIMIT}
    for name, content in [
        ("config", config),
        ("generation_config", generation),
        ("tokenizer_config", tokenizer),
        ("special_tokens_map", special),
    ]:
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
