"""Markdown to lines of terminal text, block by block."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich import markdown as rich_markdown
from rich.console import Console, ConsoleOptions, RenderResult
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

# What a model writes in angle brackets is text and not HTML; images cannot be shown; and a
# line of dashes under a paragraph would turn it into a heading while a list is arriving.
PARSER = (
    MarkdownIt("commonmark", {"html": False})
    .enable(["strikethrough", "table"])
    .disable(["lheading", "image"])
)

# For the Console that renders; inline code is black on black in rich's own theme.
THEME = Theme({"markdown.code": "cyan"})

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PADDING = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$")


class Block(NamedTuple):
    """One top-level block: a paragraph, a list, a fence of code, a table, ..."""

    first_line: int
    tokens: list[Token]


def blocks_of(text: str) -> Iterator[Block]:
    """The top-level blocks of a Markdown text.

    More whole lines can only change the last of them (link references aside).
    """
    tokens: list[Token] = []
    for token in PARSER.parse(text):
        tokens.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield Block(tokens[0].map[0] if tokens[0].map else 0, tokens)
            tokens = []


def lines_of(block: Block, console: Console) -> list[str]:
    """The block as terminal lines with their colours, none wider than the window."""
    # One column is left free: a line that fills the window may wrap, or may not.
    with console.capture() as capture:
        console.print(_Markdown(block.tokens), width=max(console.width - 1, 1))
    lines = [_PADDING.sub(r"\1", line) for line in capture.get().split("\n")]
    full = [number for number, line in enumerate(lines) if visible(line).strip()]
    return lines[full[0] : full[-1] + 1] if full else []


def visible(line: str) -> str:
    """A rendered line without its colours."""
    return _COLOUR.sub("", line)


class _Code(rich_markdown.CodeBlock):
    """Code between its fences, without frame or indentation: it can be copied as it stands."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        name = "" if self.lexer_name == "text" else self.lexer_name
        yield Text(f"```{name}", style="dim")
        code = Syntax("", self.lexer_name, theme=self.theme).highlight(str(self.text).rstrip("\n"))
        code.rstrip()
        code.no_wrap, code.overflow = False, "fold"
        yield code
        yield Text("```", style="dim")


class _Heading(rich_markdown.Heading):
    LEVEL_ALIGN = dict.fromkeys(rich_markdown.Heading.LEVEL_ALIGN, "default")


class _Markdown(rich_markdown.Markdown):
    elements = rich_markdown.Markdown.elements | {
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Heading,
    }

    def __init__(self, tokens: list[Token]) -> None:
        # Links show where they lead instead of hiding it; lines break where the model broke them.
        super().__init__("", code_theme="ansi_dark", justify="default", hyperlinks=False)
        self.parsed = tokens
        for token in tokens:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"
