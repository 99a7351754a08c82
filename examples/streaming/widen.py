"""The demo model with experts as large as wanted, and the same answers.

    python examples/streaming/widen.py OUT [WIDTH]

Each expert gets rows and columns of zeros (WIDTH instead of 512; default 14336, as in 8x7B), so
that there is something to read from disk that a trained router chooses: random weights choose
too regularly. In 4 bits; 14336 makes 200 MB.
"""

import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx

from mlx_mixtral.catalog import resolve
from mlx_mixtral.config import read_config
from mlx_mixtral.weights import open_weights

KINDS = ("weight", "scales", "biases")

out, width = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 14336
demo = resolve("demo")
config, tensors, found = read_config(demo), open_weights(demo, read_config(demo)), {}
for name, tensor in tensors.items():
    path, _, kind = name.rpartition(".")
    if f"{path}.scales" not in tensors:
        found[name] = tensor.read()
    elif kind == "weight":
        parts = [tensors[f"{path}.{part}"].read() for part in KINDS]
        values = mx.dequantize(*parts, 64, 6)
        if "switch_mlp" in path:
            axis = 2 if "down_proj" in path else 1
            shape = list(values.shape)
            shape[axis] = width - shape[axis]
            values = mx.concatenate([values, mx.zeros(shape, values.dtype)], axis=axis)
        packed = mx.quantize(values, 64, 4)
        found |= {f"{path}.{part}": a for part, a in zip(KINDS, packed, strict=True)}
out.mkdir(parents=True, exist_ok=True)
for file in demo.glob("*.json"):
    shutil.copy(file, out)
shutil.copy(demo / "tokenizer.model", out)
(out / "model.safetensors.index.json").unlink(missing_ok=True)
mx.save_safetensors(str(out / "model.safetensors"), found, {"format": "mlx"})
settings = json.loads((demo / "config.json").read_text())
settings["intermediate_size"] = width
for key in ("quantization", "quantization_config"):
    settings[key]["bits"] = 4
(out / "config.json").write_text(json.dumps(settings, indent=2))
