"""Showing an answer in the terminal while it grows."""

import time
from typing import Protocol

from rich.cells import cell_len
from rich.console import Console

from mlx_mixtral.cli.markdown import Block, blocks_of, lines_of, visible
from mlx_mixtral.cli.printable import printable

# Terminals that know these draw what is between them in one go; the others ignore them.
_BEGIN_FRAME, _END_FRAME = "\x1b[?2026h", "\x1b[?2026l"


class AnswerView(Protocol):
    """Takes the pieces of one answer; ``finish`` leaves the cursor on a fresh line."""

    def push(self, text: str) -> None: ...
    def finish(self) -> None: ...


class PlainView:
    """The text as it comes."""

    def __init__(self, console: Console) -> None:
        self._out = console.file

    def push(self, text: str) -> None:
        self._out.write(printable(text))
        self._out.flush()

    def finish(self) -> None:
        self.push("\n")


class MarkdownView:
    """Rendered Markdown.

    Only the last block can still change, so only its lines are drawn again, from the first
    one that differs. Finished blocks, and lines that have scrolled out of the window, are
    left alone: the scrollback holds each of them once.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._source = ""  # from the block that is growing
        self._begun = False  # finished blocks stand above
        self._gone = 0  # its lines that have scrolled out
        self._shown = [""]  # its other lines; the cursor stands at the end of the last one
        self._width = console.width
        self._next_refresh = 0.0
        self._draw(["…"])  # until the first token

    def push(self, text: str) -> None:
        self._source += printable(text)
        now = time.monotonic()
        if now >= self._next_refresh:
            self._refresh()
            spent = time.monotonic() - now
            self._next_refresh = now + max(0.04, 5 * spent)

    def finish(self) -> None:
        self._refresh()
        self._console.file.write("\n")
        self._console.file.flush()

    def _refresh(self) -> None:
        if self._console.width != self._width:
            self._gone = 0  # wrapped anew: rather a line twice than one lost
        blocks = list(blocks_of(self._source))
        lines: list[str] = []
        tops: list[int] = []
        for block in blocks:
            tops.append(len(lines))
            if lines or self._begun:
                lines.append("")
            lines += lines_of(block, self._console)
        self._draw(lines[self._gone :] or [""])
        growing = self._growing(blocks)
        base = tops[growing] if tops else 0
        if growing:
            self._begun = True
            start = blocks[growing].first_line
            self._source = self._source.split("\n", start)[start]
        scrolled_out = max(base, len(lines) - self._console.height + 1)
        self._gone = scrolled_out - base
        self._shown = lines[scrolled_out:] or [""]

    def _growing(self, blocks: list[Block]) -> int:
        """The first block that more text can change: the last one, or the one before it.

        While a line is incomplete it may yet turn out to continue the block above it, as
        "#1" does where "#" was a heading.
        """
        last = len(blocks) - 1
        if last > 0 and blocks[last].first_line == self._source.count("\n"):
            last -= 1
        return max(last, 0)

    def _draw(self, lines: list[str]) -> None:
        """Turn the lines that are shown into these."""
        width, height = self._console.size
        if lines == self._shown and width == self._width:
            return
        # The last line is always drawn, since the cursor has to end behind it.
        same = _common(self._shown, lines[:-1]) if width == self._width else 0
        redrawn = self._shown[same:]
        if redrawn:
            up = min(sum(_rows(line, width) for line in redrawn) - 1, height - 1)
            move = "\r" + (f"\x1b[{up}A" if up else "") + "\x1b[J"
        else:
            move = "\n"
        text = "\n".join(lines[same:])
        self._console.file.write(f"{_BEGIN_FRAME}{move}{text}{_END_FRAME}")
        self._console.file.flush()
        self._shown, self._width = lines, width


def _common(old: list[str], new: list[str]) -> int:
    """How many lines both begin with."""
    differ = (n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    return next(differ, min(len(old), len(new)))


def _rows(line: str, width: int) -> int:
    """Window rows a line takes: more than one once the window has become narrower."""
    return max(1, -(-cell_len(visible(line)) // width))
