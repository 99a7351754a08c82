"""The options that commands share."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_mixtral.errors import UsageError

ModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A model's folder or installed name, or demo. Default: the one installed last.",
        show_default=False,
    ),
]
SystemPrompt = Annotated[
    str | None,
    typer.Option(
        "--system", metavar="TEXT", help="Instructions that stand before the conversation."
    ),
]

DraftName = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL",
        help="A smaller model with the same vocabulary; it proposes tokens, so that the same "
        "answer may come sooner.",
    ),
]
KVBits = Annotated[
    int | None,
    typer.Option(
        "--kv-bits",
        metavar="8|4",
        help="Quantize keys and values: a long context takes a half or a quarter of the memory.",
    ),
]
KVWindow = Annotated[
    int | None,
    typer.Option(
        "--kv-window",
        metavar="N",
        help="Each token sees the last N only, and the first 4: memory stays bounded.",
    ),
]
ContextTokens = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="N",
        help="Allow so many tokens of text. Default: what the model has, if memory allows it.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Take no more than 12GB in all, or keep 50% of the experts in memory; the others are "
        "read from disk when they are chosen.",
    ),
]
ReadAhead = Annotated[
    int,
    typer.Option(
        "--read-ahead",
        metavar="N",
        min=0,
        help="With --memory: experts of each layer to read on a guess, before they are chosen.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Load the model also where memory seems too little.")
]
NoSpeculation = Annotated[
    bool,
    typer.Option(
        "--no-speculation",
        help="Compute token by token also where the answer repeats an earlier text.",
    ),
]
PromptCacheFile = Annotated[
    Path | None,
    typer.Option(
        "--prompt-cache",
        metavar="FILE",
        help="Take keys and values from this file, if it is there, and write them at the end.",
    ),
]


def sampling_options(
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Longest answer, in tokens. Default: until the context is full."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="0 takes the likeliest token. Default: 0; in chat, what suits the model."
        ),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the likeliest tokens that make up this probability.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep this many tokens; 0 keeps all.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Drop tokens below this share of the likeliest one's.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: tokens said lately become less likely.")
    ] = None,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=BIAS", help="Add to a token's logit. Repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer here. Repeatable.")
    ] = None,
    no_speculation: NoSpeculation = False,
) -> dict[str, Any]:
    """The sampling options that were given, as keywords of ``Sampling.of``."""
    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "logit_bias": parse_logit_bias(logit_bias) if logit_bias else None,
        "seed": seed,
        "stop": tuple(stop) if stop else None,
        "speculate": False if no_speculation else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def takes_sampling(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the sampling options; it receives them as one dict, ``sampling``.

    They are validated here, before a command spends a minute on loading a model.
    """
    shared = inspect.signature(sampling_options).parameters
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "sampling"]

    @wraps(command)
    def with_sampling(**values: Any) -> None:
        from mlx_mixtral.generation.sampling import Sampling

        sampling = sampling_options(**{name: values.pop(name) for name in shared})
        Sampling.of(**sampling)
        command(**values, sampling=sampling)

    with_sampling.__signature__ = inspect.Signature([*own, *shared.values()])  # type: ignore[attr-defined]
    return with_sampling


def parse_logit_bias(items: list[str]) -> dict[int, float]:
    """``["13=-2.5"]`` to ``{13: -2.5}``. Raises UsageError."""
    try:
        pairs = [item.split("=") for item in items]
        return {int(token): float(bias) for token, bias in pairs}
    except ValueError:
        raise UsageError(f"logit bias {' '.join(items)!r} is not ID=BIAS, as in 13=-2.5") from None
