"""How long converting takes, and how much memory: this program, mlx-lm and plain copying.

    python -m convert.bench FOLDER [--bits 4] [--repeat 3]

FOLDER is a Hugging Face checkpoint with its tokenizer, in 16 bits. All three run in turn,
each in a fresh process, so that one's caches and memory are not another's; imports do not count.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

_OURS = """
from convert import pipeline
from convert.plan import plan
from convert.readers.detect import open_source
from convert.recipe import uniform
def work(source, out, bits):
    pipeline.convert(plan(open_source(source), uniform(bits)), out)
"""
_MLX_LM = """
from mlx_lm import convert
def work(source, out, bits):
    convert(str(source), mlx_path=str(out), quantize=True, q_bits=bits, q_group_size=64)
"""
_COPY = """
import shutil
def work(source, out, bits):
    shutil.copytree(source, out)
"""
_MEASURE = """
import os, resource, sys, time
from pathlib import Path
source, out, bits = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
start = time.perf_counter()
work(source, out, bits)
os.sync()
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("measured", seconds, peak * (1 if sys.platform == "darwin" else 1024))
"""


def measure(program: str, source: Path, bits: int) -> tuple[float, float]:
    """Seconds, and the peak of resident memory in bytes."""
    # Beside the source: on the same disk, where there is room for such things.
    with tempfile.TemporaryDirectory(dir=source.parent, prefix=".bench-") as folder:
        out = Path(folder, "out")
        done = subprocess.run(
            [sys.executable, "-c", program + _MEASURE, str(source), str(out), str(bits)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        shutil.rmtree(out)
    _, seconds, peak = done.stdout.splitlines()[-1].split()
    return float(seconds), float(peak)


def main(
    source: Path,
    bits: Annotated[int, typer.Option(help="Bits a weight, in groups of 64.")] = 4,
    repeat: Annotated[int, typer.Option(help="Rounds of the three.")] = 3,
) -> None:
    """Convert SOURCE by this program and by mlx-lm, and copy it, several times in turn."""
    source = source.resolve()
    programs = {"mlx-mixtral": _OURS, "mlx-lm": _MLX_LM, "copying": _COPY}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(repeat):
        for name, program in programs.items():
            found[name].append(measure(program, source, bits))
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    print(f"{size / 1e9:.2f} GB to {bits} bits, medians of {repeat}")
    ours = statistics.median(seconds for seconds, _ in found["mlx-mixtral"])
    for name, runs in found.items():
        seconds = statistics.median(s for s, _ in runs)
        peak = statistics.median(p for _, p in runs)
        print(f"{name:<12} {seconds:7.1f} s ({seconds / ours:.2f} of ours)  {peak / 1e6:6.0f} MB")


if __name__ == "__main__":
    typer.run(main)
