"""``mixtral-mlx generate``: one prompt, one answer."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_mixtral.cli.options import DraftName, ModelName, SystemPrompt, takes_sampling
from mlx_mixtral.errors import UsageError

if TYPE_CHECKING:
    from mlx_mixtral.generation.text import Piece
    from mlx_mixtral.loading import LanguageModel


@takes_sampling
def generate(
    sampling: dict[str, Any],
    model: ModelName = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", help="Default: the whole of standard input."
        ),
    ] = None,
    system: SystemPrompt = None,
    draft: DraftName = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it stands, without chat template.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with text and figures.")
    ] = False,
) -> None:
    """Answer one prompt.

    The answer goes to standard output as it comes.
    """
    from mlx_mixtral.cli.loading import load_model

    if raw and system is not None:
        raise UsageError("--raw has no place for --system; put it into the prompt")
    text = _prompt(prompt)
    messages = _messages(text.rstrip("\n"), system)
    draft_lm = load_model(draft) if draft else None
    lm = load_model(model)
    from mlx_mixtral.generation.text import stream

    ids = text if raw else lm.template.encode(messages)
    pieces = stream(lm, ids, draft=draft_lm, **sampling)
    if as_json:
        _print_json(lm, pieces)
    else:
        _print_text(pieces)


def _prompt(given: str | None) -> str:
    from mlx_mixtral.cli.input_text import checked, read_all

    if given is None and sys.stdin.isatty():
        print("reading the prompt from the keyboard; Ctrl-D ends it", file=sys.stderr)
    text = read_all() if given is None else checked(given, "the prompt")
    if not text.strip():
        raise UsageError("the prompt is empty; give one with -p TEXT or on standard input")
    return text


def _messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        from mlx_mixtral.cli.input_text import checked

        messages.insert(0, {"role": "system", "content": checked(system, "the system prompt")})
    return messages


def _print_text(pieces: Iterator["Piece"]) -> None:
    from mlx_mixtral.cli.printable import printable

    # A terminal obeys escape sequences; a file or a program gets the text untouched.
    show = printable if sys.stdout.isatty() else str
    for piece in pieces:
        print(show(piece.text), end="", flush=True)
    print()


def _print_json(lm: "LanguageModel", pieces: Iterator["Piece"]) -> None:
    from mlx_mixtral.generation.text import collect

    answer = collect(lm, pieces)
    record = {"text": answer.text, "finish_reason": answer.finish_reason}
    print(json.dumps(record | dataclasses.asdict(answer.stats)))
