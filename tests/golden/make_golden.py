"""Make the golden checkpoints: tiny random models and their logits, by transformers in float32.

Not part of the tests, which read only what this wrote. In an environment of its own:

    pip install torch==2.13.0 transformers==5.23.0 safetensors numpy
    python tests/golden/make_golden.py

Each case is a folder as ``save_pretrained`` writes it, with ``golden.npz`` beside it:
``ids`` [B, L] and ``logits`` [B, L, vocabulary].
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

HERE = Path(__file__).parent
LENGTH = 24

SHARED: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}

# name -> (dense?, how it differs from SHARED, how it is saved)
CASES: dict[str, tuple[bool, dict[str, Any], dict[str, Any]]] = {
    "moe_8_top2": (False, {"num_local_experts": 8, "intermediate_size": 16}, {}),
    "moe_top1": (
        False,
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        {},
    ),
    "moe_top3_head_dim": (
        False,
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 20,
        },
        {},
    ),
    "moe_tied": (
        False,
        {"num_local_experts": 4, "tie_word_embeddings": True, "num_key_value_heads": 2},
        {"max_shard_size": "40KB"},
    ),
    "moe_fused": (False, {"num_local_experts": 4}, {"save_original_format": False}),
    "moe_bfloat16": (
        False,
        {"num_local_experts": 8, "num_key_value_heads": 4},
        {"dtype": torch.bfloat16},
    ),
    "moe_float16_config4": (
        False,
        {"num_local_experts": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
        {"dtype": torch.float16, "config4": True},
    ),
    "dense_window": (
        True,
        {
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "sliding_window": 7,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        {},
    ),
    "dense": (True, {"intermediate_size": 48, "sliding_window": None, "head_dim": 12}, {}),
}


def main() -> None:
    for seed, (name, (dense, changes, saving)) in enumerate(CASES.items()):
        make(HERE / name, seed, dense, SHARED | changes, dict(saving))


def make(folder: Path, seed: int, dense: bool, shape: dict[str, Any], saving: dict[str, Any]):
    torch.manual_seed(seed)
    model = build(dense, shape)
    dtype = saving.pop("dtype", torch.float32)
    config4 = saving.pop("config4", False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    ids = np.random.default_rng(seed).integers(3, shape["vocab_size"], (2, LENGTH))
    logits, margin = run(model, ids)
    if shape.get("sliding_window"):
        check_window(model, dense, shape, ids, logits)

    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder, **saving)  # after the run: it rounds RoPE's buffers
    (folder / "generation_config.json").unlink(missing_ok=True)
    if config4:
        respell(folder / "config.json")
    np.savez(folder / "golden.npz", ids=ids.astype(np.int32), logits=logits)
    size = sum(f.stat().st_size for f in folder.iterdir())
    files = len(list(folder.glob("*.safetensors")))
    print(f"{folder.name:22} {size / 1e3:6.0f} kB in {files} shards, router margin {margin:.1e}")


def build(dense: bool, shape: dict[str, Any]) -> torch.nn.Module:
    config = (MistralConfig if dense else MixtralConfig)(**shape)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = (MistralForCausalLM if dense else MixtralForCausalLM)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones by default: a forgotten norm weight would not show
                parameter.uniform_(0.5, 1.5)
            elif "embed" in name or name.endswith(".gate.weight"):
                parameter.normal_(0, 1)
            else:
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
    return model


def run(model: torch.nn.Module, ids: np.ndarray) -> tuple[np.ndarray, float]:
    """The logits, and the least distance between the last expert chosen and the next."""
    k = getattr(model.config, "num_experts_per_tok", 0)
    routers: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if name.endswith("mlp.gate"):
            module.register_forward_hook(lambda m, i, out: routers.append(out[0]))
    with torch.no_grad():
        logits = model(torch.from_numpy(ids), use_cache=False).logits
    margin = np.inf
    for values in routers:
        best = values.sort(dim=-1, descending=True).values
        margin = min(margin, float((best[:, k - 1] - best[:, k]).min()))
    assert margin > 1e-4, "a rounding error could choose another expert: take another seed"
    return logits.numpy(), margin


def check_window(model, dense, shape, ids, logits) -> None:
    """The window has to show: first where a token falls out of it, and not before."""
    open_model = build(dense, shape | {"sliding_window": None})
    open_model.load_state_dict(model.state_dict())
    difference = abs(run(open_model, ids)[0] - logits).max(axis=(0, 2))
    window = shape["sliding_window"]
    assert (difference[:window] < 1e-5).all(), difference
    assert (difference[window:] > 1e-3).all(), difference


def respell(path: Path) -> None:
    """config.json as transformers 4 wrote it."""
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.36.0"
    config.pop("head_dim", None)
    config["sliding_window"] = 4096  # the early configs' mistake, longer than the text here
    path.write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
