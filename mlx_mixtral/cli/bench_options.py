"""The options of ``mixtral-mlx bench``."""

from pathlib import Path
from typing import Annotated

import typer

from mlx_mixtral.errors import UsageError

Prompt = Annotated[int, typer.Option("--prompt", metavar="N", help="Tokens in.")]
Generate = Annotated[int, typer.Option("--generate", metavar="N", help="Tokens out.")]
Repeat = Annotated[int, typer.Option("--repeat", metavar="N", help="Runs that count.")]
Against = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="mlx-lm: measure it in turns on the same weights. mlx-lm-f32: with float32 "
        "scales, the fairer opponent without a GPU. Repeatable.",
    ),
]
ContextLengths = Annotated[
    str | None,
    typer.Option(
        "--contexts", metavar="N,N", help="Answers after so many tokens of context, as 100,8000."
    ),
]
BenchMemory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="As in chat: read the experts from disk for which 12GB, or 50% of them, lack room.",
    ),
]
Turns = Annotated[
    int,
    typer.Option(
        "--turns", metavar="N", help="A conversation of N turns of --prompt tokens. Default: none."
    ),
]
Shape = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="8x7b, 8x22b or 7b: random weights of this shape, made here; no download.",
    ),
]
Bits = Annotated[
    int | None, typer.Option(metavar="N", help="With --shape: bits a weight. Default: 4.")
]
GroupSize = Annotated[
    int | None, typer.Option(metavar="N", help="With --shape: weights a scale. Default: 64.")
]
LayerCount = Annotated[
    int | None,
    typer.Option(metavar="N", help="With --shape: only so many layers, for small machines."),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE.png", help="Draw speed over --contexts, or over usual ones."),
]
Tune = Annotated[
    bool,
    typer.Option(
        "--tune", help="Find the settings that are best on this machine, and keep them for it."
    ),
]
TuneReset = Annotated[bool, typer.Option("--tune-reset", help="Forget what --tune found.")]
AsJson = Annotated[bool, typer.Option("--json", help="All of it as data.")]


def parse_contexts(text: str | None) -> tuple[int, ...]:
    """``"100,8000"`` to ``(100, 8000)``. Raises UsageError."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"--contexts {text!r} is not N,N, as in 100,8000") from None
