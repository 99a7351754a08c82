"""This program, mlx-lm and llama.cpp on one model, under the same memory limits.

    python examples/streaming/compare.py MODEL [--gguf FILE --llama-python PYTHON]
                                         [--shares 30,50,70] [--tokens 12]

This program's budget is so many percent of the bytes of the model's weights; the limit, which the
operating system sets (see limited.py: Linux, root, no swap), is a tenth more, and the same for
all. mlx-lm reads the weights into memory, llama.cpp maps the file (to_gguf.py makes it).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from limited import run_limited

from mlx_mixtral.tokenizer import Tokenizer

HERE = Path(__file__).parent
TEXT = "Hello there, this is"
MLX_LM = """
import json, sys, time
from pathlib import Path
import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model
model = load_model(Path(sys.argv[1]), lazy=True)[0]
model.set_dtype(mx.float32)  # 16 bits are ten times as slow without a GPU
mx.eval(model.parameters())
ids, times = mx.array([int(n) for n in sys.argv[3:]]), []
for token, _ in generate_step(ids, model, max_tokens=int(sys.argv[2])):
    times.append(time.perf_counter())
print(json.dumps({"generation_tps": (len(times) - 1) / (times[-1] - times[0])}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--gguf")
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--shares", default="30,50,70")
    parser.add_argument("--tokens", default="12")
    parser.add_argument("--seconds", type=float, default=180)
    given = parser.parse_args()
    size = sum(file.stat().st_size for file in given.model.glob("*.safetensors"))
    ids = [str(n) for n in Tokenizer.from_folder(given.model).encode(TEXT, bos=True)]
    print(f"{given.model.name}: {size / 1e9:.2f} GB of weights; {given.tokens} tokens out")
    for share in [int(part) for part in given.shares.split(",")]:
        budget = size * share // 100
        limit = budget * 11 // 10
        ours = [sys.executable, "-m", "mlx_mixtral", "generate", str(given.model), "--raw"]
        ours += ["-p", TEXT, "--max-tokens", given.tokens, "--json", "--memory", str(budget)]
        ours += ["--context", "256"]
        sides = {"mlx-mixtral": ours}
        theirs = [str(given.model), given.tokens, *ids]
        sides["mlx-lm"] = [sys.executable, "-c", MLX_LM, *theirs]
        if given.gguf:
            mapped = [str(HERE / "llama_cpp_mmap.py"), given.gguf, given.tokens, *ids]
            sides["llama.cpp"] = [given.llama_python, *mapped]
        print(f"\nbudget {budget / 1e9:.2f} GB ({share}%), limit {limit / 1e9:.2f} GB", flush=True)
        for name, command in sides.items():
            print(f"  {name:<12}", told(run_limited(limit, command, given.seconds)), flush=True)


def told(run: dict) -> str:
    about = f"peak {run['peak'] / 1e9:.2f} GB, {run['faults']} pages read again, {run['seconds']} s"
    if run["code"] == -9:
        killed = "not done in time" if "not done" in run["err"] else "killed by the kernel"
        return f"{killed}; {about}"
    if run["code"]:
        return f"failed: {run['err'].strip().splitlines()[-1]}; {about}"
    figures = json.loads(run["out"].splitlines()[-1])
    speed = f"{figures['generation_tps']:.2f} tok/s; {about}"
    if streamed := figures.get("streamed"):
        speed += f"; {streamed['hit_rate']:.0%} hits, {streamed['bytes_a_token'] / 1e6:.0f} MB"
        speed += f" a token at {streamed['disk_rate'] / 1e6:.0f} MB/s"
    return speed


if __name__ == "__main__":
    main()
