#!/usr/bin/env python3
"""What quantizing costs, as the table in README: `make quality`.

  python quality_table.py
  python quality_table.py MODEL16 --bits 4 --efforts better --calibration texts.jsonl

Converts a 16-bit model with every effort and with mlx-lm, and measures each against the original
on a text that none of them has seen. The demo model comes in 6 bits: its reference is what those
stand for, in 16 bits. It is calibrated on held-out questions other than those it is measured on.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_mixtral.catalog import resolve

HERE = Path(__file__).resolve().parent
HEAD = (
    "| bits | quantized by | MB | perplexity | KL, nats a token | with the reference's routing "
    "| router's share | same top token | same experts: router alone, as it runs |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def other_questions(file: Path) -> Path:
    """Held-out questions of the demo's that it is not measured on."""
    measured = set((resolve("demo") / "heldout.jsonl").read_text(encoding="utf-8").splitlines())
    with file.open("w", encoding="utf-8") as output:
        for line in (HERE / "heldout.jsonl").read_text(encoding="utf-8").splitlines():
            messages = []
            for question, answer in json.loads(line)["turns"]:
                messages.append({"role": "user", "content": question})
                messages.append({"role": "assistant", "content": answer})
            row = json.dumps({"messages": messages}, ensure_ascii=False)
            if row not in measured:
                output.write(row + "\n")
    return file


def conversions(
    source: Path, bits: int, efforts: list[str], calibration: Path, work: Path
) -> Iterator[tuple[str, Path]]:
    """(by whom, folder) of the model in so many bits."""
    out = work / f"mlx-lm-{bits}"
    run("mlx_lm", "convert", "--hf-path", source, "--mlx-path", out, "-q", "--q-bits", bits)
    yield "mlx-lm", out
    for effort in efforts:
        out = work / f"{effort}-{bits}"
        more = ("--calibration", calibration) if effort == "best" and calibration else ()
        run("mlx_mixtral", "convert", source, "-o", out, "--bits", bits, "--effort", effort, *more)
        yield effort, out


def run(*command: object) -> str:
    """A Python module as a program of its own: its output."""
    words = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def measure(model: Path, source: Path, tokens: int) -> dict[str, Any]:
    given = (model, "--reference", source, "--tokens", tokens)
    return json.loads(run("mlx_mixtral", "quality", *given, "--json"))


def row(bits: int, by: str, found: dict[str, Any]) -> str:
    comparison = found["comparison"]
    kl, led = comparison["kl"]["mean"], comparison["kl_reference_routing"]
    cells = [
        str(bits),
        by,
        f"{found['nbytes'] / 1e6:.2f}",
        f"{found['perplexity']['value']:.4f}",
        f"{kl['value']:.4f} ± {kl['error']:.4f}",
        f"{led['value']:.4f}" if led else "",
        f"{comparison['router_share']:.0%}" if led else "",
        f"{comparison['same_top']['value']:.1%}",
        routers(comparison["layers"]) if led else "",
    ]
    return f"| {' | '.join(cells)} |"


def routers(layers: list[dict[str, Any]]) -> str:
    """The shares of tokens that keep their experts, over all layers."""
    own, ran = (
        sum(layer[name] for layer in layers) / len(layers)
        for name in ("router_own", "router_cumulated")
    )
    return f"{own:.1%}, {ran:.1%}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a 16-bit model's folder; default: the demo")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--efforts", nargs="+", default=["fast", "better", "best"])
    parser.add_argument("--calibration", type=Path, help="a text for best, when not the demo")
    parser.add_argument("--tokens", type=int, default=8192, help="count at most so many")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["MIXTRAL_MLX_HOME"] = str(work)  # the reference goes with it
        if options.model:
            source, calibration = resolve(options.model), options.calibration
        else:
            source, calibration = work / "demo", other_questions(work / "calibration.jsonl")
            run("mlx_mixtral", "convert", resolve("demo"), "-o", source, "--bits", 16)
        whole = measure(source, source, options.tokens)
        perplexity = whole["perplexity"]["value"]
        print(f"{source.name} in 16 bits: perplexity {perplexity:.4f}; {whole['text']}: ", end="")
        print(f"{whole['rule']}; {whole['tokens']:,} tokens\n\n{HEAD}", flush=True)
        for bits in options.bits:
            for by, made in conversions(source, bits, options.efforts, calibration, work):
                print(row(bits, by, measure(made, source, options.tokens)), flush=True)


if __name__ == "__main__":
    main()
