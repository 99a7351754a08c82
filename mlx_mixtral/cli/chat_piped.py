"""A conversation through pipes."""

from collections.abc import Iterable
from typing import TextIO

from mlx_mixtral.chat import Chat
from mlx_mixtral.cli.printable import printable


def answer_lines(chat: Chat, lines: Iterable[str], out: TextIO) -> None:
    """One turn a line; the answers alone go to ``out``, a newline after each."""
    # A terminal obeys escape sequences; a file or a program gets the text untouched.
    show = printable if out.isatty() else str
    for line in lines:
        if not line.strip():
            continue
        for piece in chat.stream(line.rstrip("\r\n")):
            print(show(piece.text), end="", file=out, flush=True)
        print(file=out, flush=True)
