"""``mixtral-mlx convert``: Hugging Face weights to a folder that MLX runs."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_mixtral.cli.progress import progress_bar

if TYPE_CHECKING:
    from convert.pipeline import Plan


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A folder with config.json and *.safetensors.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The new model's folder.")],
    bits: Annotated[
        int, typer.Option(help="Bits a weight: 8, 6, 5, 4, 3, 2; or 16 to change only the layout.")
    ] = 4,
    group_size: Annotated[
        int, typer.Option(help="Weights that share a scale: 32, 64 or 128.")
    ] = 64,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell how big it gets.")] = False,
) -> None:
    """Convert Mixtral or Mistral weights for MLX.

    Get the weights first, for instance with
    `hf download mistralai/Mixtral-8x7B-Instruct-v0.1 --exclude '*.pt' --local-dir SRC`.

    OUT appears when all of it is written, and not at all after an error or Ctrl-C.
    """
    from convert import pipeline
    from convert.readers.safetensors import read_folder
    from convert.recipe import uniform
    from convert.writer import check_target

    recipe = uniform(bits, group_size)
    check_target(out)
    plan = pipeline.plan(read_folder(source), recipe)
    if dry_run:
        print(f"{out} would hold {_size(plan)}")
        return
    with progress_bar(f"converting {source.absolute().name}") as progress:
        seconds = pipeline.convert(plan, out, progress)
    command = f"mixtral-mlx chat {shlex.quote(str(out))}"
    print(f"{out}: {_size(plan)}, in {_duration(seconds)}; run it: {command}")
    if not any(out.glob("tokenizer.model*")):
        print(f"note: {source} has no tokenizer.model; a chat needs it in {out}", file=sys.stderr)


def _size(plan: "Plan") -> str:
    size = plan.output_bytes
    amount = f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
    text = f"{amount}, {plan.bits_per_weight:.2f} bits per weight"
    return text + " (float32 becomes bfloat16)" if plan.narrowed else text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
