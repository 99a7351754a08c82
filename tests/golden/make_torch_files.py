"""Make the files of ``tests/golden_torch``: tiny models, as ``torch.save`` writes them.

Not part of the tests, which read only what this wrote. In an environment of its own:

    pip install torch==2.13.0 safetensors numpy
    python tests/golden/make_torch_files.py

Every model is there in Mistral's own layout (interleaved RoPE) and, as the truth to compare with,
in Hugging Face's (half-split), 16 bits a weight. The rows of q and k are moved one by one here,
and the attention scores of both orders are compared, each with its own rotation.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

TARGET = Path(__file__).parent.parent / "golden_torch"

MIXTRAL = {
    "dim": 32,
    "n_layers": 2,
    "head_dim": 8,
    "hidden_dim": 48,
    "n_heads": 4,
    "n_kv_heads": 2,
    "norm_eps": 1e-05,
    "vocab_size": 64,
    "moe": {"num_experts_per_tok": 2, "num_experts": 4},
}
MISTRAL = {
    "dim": 24,
    "n_layers": 2,
    "head_dim": 12,
    "hidden_dim": 40,
    "n_heads": 2,
    "n_kv_heads": 1,
    "norm_eps": 1e-05,
    "sliding_window": 64,
    "vocab_size": 32,
}


def main() -> None:
    torch.manual_seed(1)
    shutil.rmtree(TARGET, ignore_errors=True)
    make_mixtral()
    make_mistral()
    make_arrays()
    make_refused()
    size = sum(file.stat().st_size for file in TARGET.rglob("*") if file.is_file())
    print(f"{size / 1e3:.0f} kB")


def make_mixtral() -> None:
    """One model in the three layouts of its release, and in Hugging Face's."""
    weights = random_weights(MIXTRAL, torch.bfloat16)
    check_rope(weights, MIXTRAL)
    write_hugging_face(TARGET / "mixtral_hf", weights, MIXTRAL)

    folder = new_folder("mixtral_pth", MIXTRAL)
    torch.save(weights, folder / "consolidated.00.pth")

    folder = new_folder("mixtral_safetensors", MIXTRAL)
    save_file(weights, folder / "consolidated.safetensors")

    folder = new_folder("mixtral_pt", None)
    write_config(folder, MIXTRAL)
    for n in range(2):
        torch.save(by_layer(weights, n), folder / f"consolidated.{n:02}.pt")


def by_layer(weights: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """Layer n, its experts stacked; the first file has what is in no layer, too."""
    layer = f"layers.{n}."
    out = {k: v for k, v in weights.items() if k.startswith(layer) and ".experts." not in k}
    moe = out.pop(f"{layer}feed_forward.gate.weight")
    out[f"{layer}block_sparse_moe.gate.weight"] = moe
    for w in ("w1", "w2", "w3"):
        each = [weights[f"{layer}feed_forward.experts.{e}.{w}.weight"] for e in range(4)]
        stack = torch.cat([matrix.T if w == "w2" else matrix for matrix in each])
        assert stack.shape == (4 * MIXTRAL["hidden_dim"], MIXTRAL["dim"])
        assert stack.is_contiguous()
        out[f"{layer}block_sparse_moe.{w}"] = stack
    return out | ({k: v for k, v in weights.items() if "layers" not in k} if n == 0 else {})


def make_mistral() -> None:
    """A dense model in float16 as the state_dict() of a module, within another mapping."""
    weights = random_weights(MISTRAL, torch.float16)
    check_rope(weights, MISTRAL)
    write_hugging_face(TARGET / "mistral_hf", weights, MISTRAL)
    folder = new_folder("mistral_pth", MISTRAL)
    tree = Tree(weights)
    assert set(tree.state_dict()) == set(weights)
    assert tree.state_dict()._metadata
    torch.save({"model": tree.state_dict(), "step": 7}, folder / "consolidated.00.pth")


class Tree(nn.Module):
    """Modules that are named as the tensors are."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            *path, leaf = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(leaf, nn.Parameter(weight))


def make_arrays() -> None:
    """Tensors that lie in their storages in every way there is, and what their values are."""
    grid = torch.arange(24, dtype=torch.float32).reshape(4, 6).to(torch.bfloat16)
    arrays = {
        "whole": grid,
        "transposed": grid.T,
        "rows": grid[1:3],
        "row": grid[2],
        "rows_transposed": grid[1:3].T,
        "column": grid[:1, 1:4],
        "flat": grid.reshape(2, 3, 4),
        "one_by_one": grid[3:, 5:],
        "parameter": nn.Parameter(torch.randn(3, 5, dtype=torch.float16)),
        "float32": torch.randn(2, 2, requires_grad=True),
        "scalar": torch.tensor(1.5, dtype=torch.float16),
    }
    assert not arrays["transposed"].is_contiguous()
    folder = TARGET / "arrays"
    folder.mkdir(parents=True)
    torch.save(arrays, folder / "arrays.pth")
    torch.save(arrays, folder / "protocol4.pth", pickle_protocol=4)
    torch.serialization.set_crc32_options(False)
    torch.save(arrays, folder / "without_crc.pth")
    torch.serialization.set_crc32_options(True)
    values = {name: array.detach().clone().contiguous() for name, array in arrays.items()}
    save_file(values, folder / "values.safetensors")


def make_refused() -> None:
    """What has to be refused, and why, in the name."""
    folder = TARGET / "refused"
    folder.mkdir(parents=True)
    grid = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    torch.save({"a": grid[:, ::2]}, folder / "steps.pth")
    torch.save({"a": grid.reshape(2, 3, 4).transpose(1, 2)}, folder / "three_axes.pth")
    torch.save({"a": grid[:1].expand(4, 6)}, folder / "expanded.pth")
    torch.save({"a": grid.long()}, folder / "integers.pth")
    torch.save({"a": grid, "b": Path("a")}, folder / "path.pth")
    torch.save({"a": torch._neg_view(grid)}, folder / "negated.pth")
    torch.save({"a": grid}, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(2, 2), folder / "module.pth")
    torch.save([grid], folder / "list.pth")
    torch.save({"model": {"a": grid}, "average": {"a": grid + 1}}, folder / "two_models.pth")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(folder / "script.pth"))


# --- weights


def random_weights(params: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Under Mistral's own names, in the order of its own files."""
    d, f, hd = params["dim"], params["hidden_dim"], params["head_dim"]
    q, kv = params["n_heads"] * hd, params["n_kv_heads"] * hd
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings": (params["vocab_size"], d)}
    for n in range(params["n_layers"]):
        layer = f"layers.{n}."
        for name, rows in (("wq", q), ("wk", kv), ("wv", kv)):
            shapes[f"{layer}attention.{name}"] = (rows, d)
        shapes[f"{layer}attention.wo"] = (d, q)
        shapes[f"{layer}attention_norm"] = shapes[f"{layer}ffn_norm"] = (d,)
        places = ["feed_forward"]
        if moe := params.get("moe"):
            shapes[f"{layer}feed_forward.gate"] = (moe["num_experts"], d)
            places = [f"feed_forward.experts.{e}" for e in range(moe["num_experts"])]
        for place in places:
            for w, shape in (("w1", (f, d)), ("w2", (d, f)), ("w3", (f, d))):
                shapes[f"{layer}{place}.{w}"] = shape
    shapes |= {"norm": (d,), "output": (params["vocab_size"], d)}
    return {f"{name}.weight": torch.randn(shape).to(dtype) for name, shape in shapes.items()}


NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.gate": "block_sparse_moe.gate",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def write_hugging_face(folder: Path, weights: dict[str, Tensor], params: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    write_config(folder, params)
    tensors = {}
    for name, weight in weights.items():
        stem = name.removesuffix(".weight")
        prefix = ""
        if stem.startswith("layers."):
            _, n, stem = stem.split(".", 2)
            prefix = f"model.layers.{n}."
        stem = NAMES.get(stem) or stem.replace("feed_forward", "block_sparse_moe")
        if stem.endswith(("q_proj", "k_proj")):
            weight = half_split(weight, params["head_dim"])
        tensors[f"{prefix}{stem}.weight"] = weight
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def half_split(weight: Tensor, head_dim: int) -> Tensor:
    """Neighbours 2i and 2i + 1 of each head go to i and i + half."""
    out = torch.empty_like(weight)
    for head in range(0, len(weight), head_dim):
        for i in range(head_dim // 2):
            out[head + i] = weight[head + 2 * i]
            out[head + head_dim // 2 + i] = weight[head + 2 * i + 1]
    return out


def check_rope(weights: dict[str, Tensor], params: dict[str, Any]) -> None:
    """Both orders, each with its rotation, give the same attention scores."""
    hd, length = params["head_dim"], 5
    x = torch.randn(length, params["dim"], dtype=torch.float64)
    frequencies = 1e6 ** (-torch.arange(0, hd, 2, dtype=torch.float64) / hd)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)

    def neighbours(t: Tensor) -> Tensor:  # Mistral's: pairs as complex numbers
        pairs = torch.view_as_complex(t.reshape(length, -1, hd // 2, 2))
        turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.view_as_real(turned).flatten(2)

    def halves(t: Tensor) -> Tensor:  # Hugging Face's
        a, b = t.reshape(length, -1, hd).chunk(2, dim=-1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def scores(rotate, order) -> Tensor:
        q, k = (
            rotate(x @ order(weights[f"layers.0.attention.{w}.weight"]).double().T)
            for w in ("wq", "wk")
        )
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        return torch.einsum("ihd,jhd->hij", q, k)

    theirs = scores(halves, lambda weight: half_split(weight, hd))
    assert torch.allclose(scores(neighbours, lambda weight: weight), theirs)
    assert not torch.allclose(scores(halves, lambda weight: weight), theirs)


# --- folders


def new_folder(name: str, params: dict[str, Any] | None) -> Path:
    folder = TARGET / name
    folder.mkdir(parents=True)
    if params:
        (folder / "params.json").write_text(json.dumps(params))
    return folder


def write_config(folder: Path, params: dict[str, Any]) -> None:
    """config.json, as transformers 4 wrote it."""
    moe = params.get("moe")
    config = {
        "model_type": "mixtral" if moe else "mistral",
        "vocab_size": params["vocab_size"],
        "hidden_size": params["dim"],
        "intermediate_size": params["hidden_dim"],
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params["n_kv_heads"],
        "head_dim": params["head_dim"],
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": 1e6 if moe else 1e4,
        "sliding_window": params.get("sliding_window"),
    }
    if moe:
        config["num_local_experts"] = moe["num_experts"]
        config["num_experts_per_tok"] = moe["num_experts_per_tok"]
    (folder / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main()
