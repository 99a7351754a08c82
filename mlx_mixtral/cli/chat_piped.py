"""A conversation through pipes."""

from collections.abc import Iterable
from contextlib import closing, nullcontext
from typing import TextIO

from mlx_mixtral.chat import Chat
from mlx_mixtral.cli.interrupt import interrupt_asks
from mlx_mixtral.cli.printable import printable


def answer_lines(chat: Chat, lines: Iterable[str], out: TextIO, *, finish: bool = False) -> None:
    """One turn a line; the answers alone go to ``out``, a newline after each.

    Args:
        finish: after Ctrl-C the token under way is finished, so that keys and values are whole.
    """
    # A terminal obeys escape sequences; a file or a program gets the text untouched.
    show = printable if out.isatty() else str
    for line in lines:
        if not line.strip():
            continue
        reason: str | None = None
        with (
            closing(chat.stream(line.rstrip("\r\n"))) as pieces,  # type: ignore[type-var]
            interrupt_asks(chat.stop) if finish else nullcontext(),
        ):
            for piece in pieces:
                print(show(piece.text), end="", file=out, flush=True)
                reason = piece.finish_reason
        print(file=out, flush=True)
        if reason == "interrupted":
            raise KeyboardInterrupt
