"""``mixtral-mlx generate``: one prompt, one answer."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_mixtral.cli.options import (
    ContextTokens,
    DraftName,
    Force,
    KVBits,
    KVWindow,
    Memory,
    ModelName,
    PromptCacheFile,
    ReadAhead,
    SystemPrompt,
    takes_sampling,
)
from mlx_mixtral.errors import UsageError

if TYPE_CHECKING:
    from mlx_mixtral.generation.kv import KVSettings
    from mlx_mixtral.generation.prompt_cache import PromptCache
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
    stats: Annotated[
        bool, typer.Option("--stats", help="Tell speed and memory on standard error at the end.")
    ] = False,
    context: ContextTokens = None,
    kv_bits: KVBits = None,
    kv_window: KVWindow = None,
    memory: Memory = None,
    read_ahead: ReadAhead = 0,
    prompt_cache: PromptCacheFile = None,
    force: Force = False,
) -> None:
    """Answer one prompt.

    The answer goes to standard output as it comes.
    """
    from mlx_mixtral.cli.kept import check_kept
    from mlx_mixtral.cli.loading import load_model

    if raw and system is not None:
        raise UsageError("--raw has no place for --system; put it into the prompt")
    kv = check_kept(kv_bits, kv_window, prompt_cache)
    text = _prompt(prompt)
    messages = _messages(text.rstrip("\n"), system)
    draft_lm = load_model(draft, force=force) if draft else None
    lm = load_model(model, kv, context, force, memory, read_ahead)
    ids = lm.tokenizer.encode(text, bos=True) if raw else lm.template.encode(messages)
    from mlx_mixtral.generation.draft import DraftModel
    from mlx_mixtral.generation.sampling import Sampling
    from mlx_mixtral.generation.text import answer

    settings, drafter = Sampling.of(**sampling), DraftModel(lm, draft_lm) if draft_lm else None
    with (
        _kept(lm, kv, prompt_cache) as (cache, interrupted),
        closing(answer(lm, ids, settings, cache, interrupted, drafter)) as pieces,  # type: ignore[type-var]
    ):
        if as_json:
            _print_json(lm, pieces)
        else:
            _print_text(pieces, stats)


@contextmanager
def _kept(
    lm: "LanguageModel", kv: "KVSettings", file: Path | None
) -> Iterator[tuple["PromptCache", Callable[[], bool]]]:
    """The cache of an answer, and what tells that it is interrupted.

    With a file, Ctrl-C ends the answer after its present token, so that there is to keep.
    """
    from mlx_mixtral.cli.interrupt import interrupt_asks
    from mlx_mixtral.cli.kept import kept_in
    from mlx_mixtral.generation.kv_file import Owner, read, write
    from mlx_mixtral.generation.prompt_cache import PromptCache

    stop, cache = Event(), PromptCache(lm.config, kv)
    with (
        kept_in(
            file,
            lambda path: read(path, cache, Owner.of(lm)),
            lambda path, tell: write(path, cache, Owner.of(lm), tell),
        ),
        interrupt_asks(stop.set) if file else nullcontext(),
    ):
        yield cache, stop.is_set
    if stop.is_set():
        raise KeyboardInterrupt


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


def _print_text(pieces: Iterator["Piece"], stats: bool) -> None:
    from mlx_mixtral.cli.printable import printable
    from mlx_mixtral.cli.stats_view import lines_of

    # A terminal obeys escape sequences; a file or a program gets the text untouched.
    show = printable if sys.stdout.isatty() else str
    for piece in pieces:
        print(show(piece.text), end="", flush=True)
        if stats and piece.stats:
            print("\n", *lines_of(piece.stats), sep="\n", file=sys.stderr)
    print()


def _print_json(lm: "LanguageModel", pieces: Iterator["Piece"]) -> None:
    from mlx_mixtral.generation.text import collect

    answer = collect(lm, pieces)
    record = {"text": answer.text, "finish_reason": answer.finish_reason}
    print(json.dumps(record | dataclasses.asdict(answer.stats)))
