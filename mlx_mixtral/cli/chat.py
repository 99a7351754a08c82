"""``mixtral-mlx chat``: a conversation."""

import sys
from typing import Annotated, Any

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


@takes_sampling
def chat(
    sampling: dict[str, Any],
    model: ModelName = None,
    system: SystemPrompt = None,
    draft: DraftName = None,
    context: ContextTokens = None,
    kv_bits: KVBits = None,
    kv_window: KVWindow = None,
    memory: Memory = None,
    read_ahead: ReadAhead = 0,
    prompt_cache: PromptCacheFile = None,
    force: Force = False,
    no_markdown: Annotated[
        bool, typer.Option("--no-markdown", help="Show answers as they are written.")
    ] = False,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Do not remember what is typed here.")
    ] = False,
) -> None:
    """Talk with a model.

    In a terminal, /help lists the commands. Otherwise each line of standard input is one
    turn (also a line that starts with /), empty lines are skipped, and standard output
    gets the answers alone.
    """
    from mlx_mixtral.cli.input_text import checked, read_lines
    from mlx_mixtral.cli.kept import check_kept, kept_in
    from mlx_mixtral.cli.keyboard import keys_unechoed
    from mlx_mixtral.cli.loading import load_model

    if system is not None:
        checked(system, "the system prompt")
    settings = check_kept(kv_bits, kv_window, prompt_cache)
    with keys_unechoed():
        draft_lm = load_model(draft, force=force) if draft else None
        lm = load_model(model, settings, context, force, memory, read_ahead)
        from mlx_mixtral.chat import Chat
    kv = {"kv_bits": kv_bits, "kv_window": kv_window}
    talk = Chat(lm, system=system, **kv, draft=draft_lm, **sampling)
    if sys.stdin.isatty() and sys.stdout.isatty():
        from mlx_mixtral.cli.chat_terminal import ChatTerminal

        terminal = ChatTerminal(lm, talk, markdown=not no_markdown, history=not no_history)
        with kept_in(prompt_cache, talk.load_kv, lambda *args: terminal.chat.save_kv(*args)):
            terminal.run()
    else:
        from mlx_mixtral.cli.chat_piped import answer_lines

        with kept_in(prompt_cache, talk.load_kv, talk.save_kv):
            answer_lines(talk, read_lines(), sys.stdout, finish=prompt_cache is not None)
