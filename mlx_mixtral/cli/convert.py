"""``mixtral-mlx convert``: weights in any form to a folder that MLX runs."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_mixtral.cli.progress import kept_on_interrupt, progress_bar

if TYPE_CHECKING:
    from convert.plan import Plan
    from convert.readers import Source
    from mlx_mixtral.config import Quantization


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder, a file, or anything `pull` takes.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The new model's folder.")],
    bits: Annotated[
        int | None,
        typer.Option(
            help="Bits a weight: 8, 6, 5, 4, 3, 2; or 16 to change only the layout. Without it, "
            "16-bit weights get 4, and quantized ones keep their codes.",
            show_default=False,
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Weights that share a scale: 32, 64 or 128.", show_default="64"),
    ] = None,
    file: Annotated[
        str | None, typer.Option(help="Which of several files or forms, by name or pattern.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be done.")
    ] = False,
) -> None:
    """Convert Mixtral or Mistral weights for MLX.

    OUT appears when all of it is written and checked. What an interrupt leaves unfinished
    waits beside it: the same command goes on from there.
    """
    from convert import pipeline
    from convert.plan import plan
    from convert.readers.detect import open_source
    from convert.target import check_target

    check_target(out)
    opened = open_source(Path(source), file)
    made = plan(opened, _recipe(opened, bits, group_size))
    for note in opened.notes:
        print(f"note: {note}", file=sys.stderr)
    if dry_run:
        print(f"{out} would hold {_size(made)}")
        return
    title = f"converting {Path(source).absolute().name}"
    with kept_on_interrupt(out), progress_bar(title) as progress:
        seconds = pipeline.convert(made, out, progress, origin=source)
    command = f"mixtral-mlx chat {shlex.quote(str(out))}"
    print(f"{out}: {_size(made)}, in {_duration(seconds)}; run it: {command}")
    if not any(out.glob("tokenizer.model*")):
        print(f"note: {source} has no tokenizer.model; a chat needs it in {out}", file=sys.stderr)


def _recipe(source: "Source", bits: int | None, group_size: int | None) -> "Quantization | None":
    from convert.plan import own_recipe
    from convert.recipe import uniform

    quantized = any(tensor.spec for tensor in source.tensors.values())
    if quantized and bits is None and group_size is None:
        return own_recipe(source)
    return uniform(bits or 4, group_size or 64)


def _size(plan: "Plan") -> str:
    size = plan.output_bytes
    amount = f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
    text = f"{amount}, {plan.bits_per_weight:.2f} bits per weight"
    half = str(plan.half).removeprefix("mlx.core.")
    return text + f" (float32 becomes {half})" if plan.narrowed else text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
