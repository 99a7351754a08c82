"""Pairs of models for speculation, made from the demo: none that is small was trained for it.

As a command it measures them: ``python tests/drafts.py [--layers 14] [--bits 3 | --random]``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from mlx_mixtral.before_mlx import before_mlx

before_mlx()

import mlx.core as mx  # noqa: E402

from mlx_mixtral import Chat, load  # noqa: E402
from mlx_mixtral.catalog import resolve  # noqa: E402
from mlx_mixtral.loading import LanguageModel  # noqa: E402

FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)
QUESTIONS = (
    "Tell me a story about a dragon.",
    "Tell me a story about a boy and a boat.",
    "Count from 5 to 25.",
    "What is a violin?",
    "How do you say dog in French?",
    "Tell me a story about a girl who lost her shoe.",
)


def write_deeper(folder: Path, layers: int) -> Path:
    """The demo with so many more layers, which change nothing and take their time.

    Their last matrices, o_proj and down_proj, are zero, so what they add is zero.
    """
    weights = _demo_weights()
    old = _demo_config()["num_hidden_layers"]
    for name in list(weights):
        if name.startswith("model.layers."):
            n, _, rest = name.removeprefix("model.layers.").partition(".")
            last = ".o_proj." in name or ".down_proj." in name
            zero = last and not name.endswith(".weight")
            for copy in range(old + int(n), old + layers, old):
                value = weights[name]
                weights[f"model.layers.{copy}.{rest}"] = mx.zeros_like(value) if zero else value
    return _write(folder, weights, num_hidden_layers=old + layers)


def write_coarser(folder: Path, bits: int) -> Path:
    """The demo quantized once more, to fewer bits: about the same, but not quite."""
    weights, spec = _demo_weights(), _demo_config()["quantization"]
    for name in [name for name in weights if name.endswith(".scales")]:
        path = name.removesuffix(".scales")
        parts = [f"{path}.{part}" for part in ("weight", "scales", "biases")]
        whole = mx.dequantize(*(weights[p] for p in parts), spec["group_size"], spec["bits"])
        for part, value in zip(parts, mx.quantize(whole, 64, bits), strict=True):
            weights[part] = value
    return _write(folder, weights, quantization={"bits": bits, "group_size": 64})


def write_random(folder: Path) -> Path:
    """The demo's shapes without its sense."""
    weights = _demo_weights()
    for seed, name in enumerate(sorted(weights)):
        if name.endswith(".weight") and weights[name].dtype == mx.uint32:
            key = mx.random.key(seed)
            weights[name] = mx.random.randint(0, 1 << 30, weights[name].shape, mx.uint32, key)
    return _write(folder, weights)


def _demo_weights() -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in resolve("demo").glob("*.safetensors"):
        found |= mx.load(str(file))  # type: ignore[arg-type]
    return found


def _demo_config() -> dict[str, object]:
    return json.loads((resolve("demo") / "config.json").read_text())  # type: ignore[no-any-return]


def _write(folder: Path, weights: dict[str, mx.array], **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (resolve("demo") / name).is_file():
            shutil.copy(resolve("demo") / name, folder)
    config = _demo_config() | changes
    if "quantization" in changes and "quantization_config" in config:
        config["quantization_config"] = changes["quantization"]
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


def _speeds(
    lm: LanguageModel, draft: LanguageModel | None, temperature: float
) -> tuple[float, float]:
    """Tokens a second over one conversation, and the share of drafted tokens that held."""
    chat = Chat(lm, draft=draft, temperature=temperature, seed=1, speculate=draft is not None)
    tokens, seconds, drafted, accepted = 0, 0.0, 0, 0
    for question in QUESTIONS:
        stats = chat.send(question).stats
        tokens += stats.completion_tokens
        seconds += stats.completion_tokens / stats.generation_tps
        drafted += stats.drafted_tokens
        accepted += stats.accepted_tokens
    return tokens / seconds, accepted / max(1, drafted)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--bits", type=int)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        lm, draft = load(write_deeper(Path(name) / "deep", given.layers)), load("demo")
        if given.bits:
            draft = load(write_coarser(Path(name) / "coarse", given.bits))
        if given.random:
            draft = load(write_random(Path(name) / "random"))
    for temperature in (0.0, 0.7):
        ratios = []
        for _ in range(given.pairs):
            plain, _ = _speeds(lm, None, temperature)
            fast, share = _speeds(lm, draft, temperature)
            ratios.append(fast / plain)
        spread = " ".join(f"{r:.2f}" for r in ratios)
        print(f"temperature {temperature}: {statistics.median(ratios):.2f}x ({spread}); "
              f"{plain:.1f} tok/s alone, {share:.0%} of drafted tokens held")  # fmt: skip


if __name__ == "__main__":
    main()
