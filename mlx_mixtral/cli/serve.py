"""``mixtral-mlx serve``: the model for other programs."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mlx_mixtral.cli.options import (
    ContextTokens,
    Force,
    KVBits,
    KVWindow,
    Memory,
    ModelName,
    NoSpeculation,
)
from mlx_mixtral.errors import UsageError


def serve(
    model: ModelName = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="MIXTRAL_MLX_API_KEY",
            show_envvar=True,
            metavar="KEY",
            help="What clients have to show. Other programs see a command's options: "
            "rather use the variable.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file that holds the key.")
    ] = None,
    open_to_all: Annotated[
        bool, typer.Option("--open", help="Serve other machines without any key.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name of this server. Repeatable."),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let pages of this origin use it. Repeatable."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name for clients. Default: its folder's.")
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name; * stands for anything. Repeatable."),
    ] = None,
    running: Annotated[int, typer.Option(min=1, help="Answers at once, at most.")] = 8,
    waiting: Annotated[int, typer.Option(min=0, help="Further requests kept waiting.")] = 256,
    context: ContextTokens = None,
    kv_bits: KVBits = None,
    kv_window: KVWindow = None,
    memory: Memory = None,
    prefix_cache: Annotated[
        float | None,
        typer.Option(
            metavar="GB",
            min=0,
            help="Keys and values to keep of answers that are over, for prompts that begin alike. "
            "Default: up to four contexts, if memory allows it.",
        ),
    ] = None,
    prefix_folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep them there from one run to the next."),
    ] = None,
    no_speculation: NoSpeculation = False,
    drain: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="For answers under way at the end.")
    ] = 60,
    log_level: Annotated[
        str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")
    ] = "info",
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts and answers into the log.")
    ] = False,
    force: Force = False,
) -> None:
    """Serve a model to clients of OpenAI's and Mistral's APIs, and a page to chat on.

    Standard output gets one line, once requests are taken; the log goes to standard error.
    SIGTERM and Ctrl-C let answers under way come to an end; a second one does not.
    """
    from mlx_mixtral.cli.kept import check_kept
    from mlx_mixtral.cli.loading import load_model

    if log_level not in ("debug", "info", "warning", "error"):
        raise UsageError(f"--log-level {log_level!r} is none of debug, info, warning, error")
    kv = check_kept(kv_bits, kv_window, None)
    from mlx_mixtral.server.listener import address_of, open_socket
    from mlx_mixtral.server.settings import Limits, Settings

    settings = Settings(
        host=host,
        port=port,
        api_key=_key(api_key_file) if api_key_file else api_key,
        open_to_all=open_to_all,
        hosts=tuple(allow_host or ()),
        origins=tuple(cors or ()),
        name=name,
        aliases=tuple(alias or ()),
        log_prompts=log_prompts,
        speculates=not no_speculation,
        limits=Limits(drain_seconds=drain),
    )
    opened = open_socket(settings)
    lm = load_model(model, kv, context, force, memory)
    from mlx_mixtral.server.engine import Engine
    from mlx_mixtral.server.room import Room
    from mlx_mixtral.server.serving import serve as serve_until_signal

    # With --memory, what is not the model's is not to be taken: one context, and no prefixes.
    room = Room(0, 0) if memory else Room.beside(lm, kv, running)
    engine = Engine(
        lm,
        kv=kv,
        running=running,
        waiting=waiting,
        kv_bytes=room.running or None,
        prefix_bytes=room.prefixes if prefix_cache is None else int(prefix_cache * 1e9),
        prefix_folder=prefix_folder,
    )
    address = address_of(opened)
    code = serve_until_signal(
        lm,
        engine,
        settings,
        opened,
        lambda: print(f"serving {lm.name} at {address}", flush=True),
        log_level,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by way of the interpreter's own end, in which MLX's threads at times abort the process.
    os._exit(code)


def _key(file: Path) -> str:
    try:
        return file.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {file} cannot be read ({error})") from None
