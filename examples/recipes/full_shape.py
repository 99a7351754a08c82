"""One layer of Mixtral 8x7B, of random weights, through every recipe: seconds and memory.

    python examples/recipes/full_shape.py [--layers 1] [--effort fast] [--recipes 4bit 2bit]

It writes 3.4 GB into a temporary folder (5.7 with two layers), and one result at a time.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import mlx.core as mx

from convert.recipe import RECIPES

CONFIG = {
    "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
    "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip


def checkpoint(folder: Path, layers: int) -> Path:
    """As Hugging Face has it, one file for what the layers share and one a layer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    d, f = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shared = {"model.embed_tokens.weight": (32000, d), "lm_head.weight": (32000, d)}
    save(folder / "model-00000.safetensors", shared | {"model.norm.weight": (d,)})
    for n in range(layers):
        layer = f"model.layers.{n}."
        shapes = {f"{layer}{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
        for name, rows in {"q": d, "k": d // 4, "v": d // 4, "o": d}.items():
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, d)
        shapes[f"{layer}block_sparse_moe.gate.weight"] = (8, d)
        for e in range(8):
            expert = f"{layer}block_sparse_moe.experts.{e}."
            shapes |= {f"{expert}w1.weight": (f, d), f"{expert}w3.weight": (f, d)}
            shapes[f"{expert}w2.weight"] = (d, f)
        save(folder / f"model-{n + 1:05}.safetensors", shapes)
    return folder


def save(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    weights = {name: (0.02 * mx.random.normal(s)).astype(mx.bfloat16) for name, s in shapes.items()}
    mx.save_safetensors(str(file), weights)


def converted(source: Path, out: Path, recipe: str, effort: str) -> tuple[float, int]:
    """Seconds, and the most bytes that the process had in memory."""
    command = ["convert", str(source), "-o", str(out), "--recipe", recipe]
    command += ["--effort", effort] if recipe != "16bit" else []
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_mixtral", *command], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{recipe} failed")
    return time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--effort", default="fast", choices=["fast", "better", "best"])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own, so that its memory is not inherited by those that are measured.
        source = Path(folder) / "source"
        maker = get_context("spawn").Process(target=checkpoint, args=(source, args.layers))
        maker.start()
        maker.join()
        print(f"{'recipe':10}  {'MB':>6}  {'seconds':>7}  {'peak MB':>7}   (effort {args.effort})")
        for recipe in args.recipes:
            out = Path(folder) / recipe
            seconds, peak = converted(source, out, recipe, args.effort)
            size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
            print(f"{recipe:10}  {size / 1e6:6.0f}  {seconds:7.1f}  {peak / 1e6:7.0f}", flush=True)
            shutil.rmtree(out)


if __name__ == "__main__":
    main()
