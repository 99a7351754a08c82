"""What an error in each kind of matrix does to a model's predictions.

    python examples/demo_model/sensitivity.py FOLDER      (a model in 16 bits that fits memory)

Each kind of matrix of each layer is quantized alone, at 3 bits. The divergence that this causes,
over the relative error energy |W - Q|^2 / |W|^2 that it is caused by, is what one unit of error
weighs there. `convert --fit` takes its weights from the sums over the layers of the demo model.
The text is every other conversation of the demo's own questions; the rest is left for tests.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_mixtral.catalog import resolve
from mlx_mixtral.config import read_config
from mlx_mixtral.lab.heldout import heldout
from mlx_mixtral.lab.quality import divergence
from mlx_mixtral.loading import load_model

BITS, GROUP = 3, 64
TOKENS, TOGETHER = 2048, 8
KIND = re.compile(r"model\.layers\.(\d+)\..*?(qkv_proj|o_proj|gate_up_proj|down_proj)\b.*")


def kind_of(name: str) -> tuple[str, int] | None:
    """The kind of a matrix, and its layer."""
    if match := KIND.fullmatch(name):
        return match[2].removesuffix("_proj"), int(match[1])
    if "embed_tokens" in name or "lm_head" in name:
        return name.split(".")[-2 if "linear" not in name else -3], 0
    return None


def predictions(model, windows) -> list[mx.array]:
    """Log-probabilities of the tokens that count, of windows in order of their length. Some go
    side by side, padded behind their end, where nothing that counts sees it."""
    found = []
    for begin in range(0, len(windows), TOGETHER):
        some = windows[begin : begin + TOGETHER]
        longest = len(some[-1].ids)
        logits = model(mx.array([[*w.ids, *[0] * (longest - len(w.ids))] for w in some]))
        logits = logits.astype(mx.float32)
        log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        found += [log_probs[i, w.first - 1 : len(w.ids) - 1] for i, w in enumerate(some)]
        mx.eval(found)
    return found


def main(folder: Path) -> None:
    model = load_model(folder, read_config(folder), mx.float32)
    text = heldout(folder, resolve("demo") / "heldout.jsonl", TOKENS)
    windows = sorted(text.windows[::2], key=lambda window: len(window.ids))
    reference = predictions(model, windows)
    places = defaultdict(list)
    for name, weight in tree_flatten(model.parameters()):
        if (kind := kind_of(name)) and weight.ndim > 1:
            places[kind].append((name, weight))
    sums = defaultdict(float)
    print(f"{'matrix':<8}{'layer':>6}{'error':>9}{'KL':>10}{'KL/error':>10}")
    for (kind, layer), named in places.items():
        rough = [(name, requantized(weight)) for name, weight in named]
        lost = sum(mx.square(w - r).sum() for (_, w), (_, r) in zip(named, rough, strict=True))
        error = (lost / sum(mx.square(w).sum() for _, w in named)).item()
        model.load_weights(rough, strict=False)
        log_probs = predictions(model, windows)
        model.load_weights(named, strict=False)
        kl = mx.concatenate([divergence(a, b) for a, b in zip(reference, log_probs, strict=True)])
        mean = kl.mean().item()
        sums[kind] += mean / error
        print(f"{kind:<8}{layer:>6}{error:>9.4f}{mean:>10.2e}{mean / error:>10.4f}")
    print("\nsums over the layers:", {kind: round(value, 4) for kind, value in sums.items()})


def requantized(weight: mx.array) -> mx.array:
    weight = weight.astype(mx.bfloat16)
    codes = mx.quantize(weight, GROUP, BITS)
    value = mx.dequantize(*codes, GROUP, BITS).astype(mx.float32)
    mx.eval(value)
    return value


if __name__ == "__main__":
    main(Path(sys.argv[1]))
