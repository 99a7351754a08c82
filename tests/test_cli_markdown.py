"""Markdown that is rendered while it arrives, judged on an emulated terminal."""

import random

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mlx_mixtral.cli.answer_view import MarkdownView, PlainView
from mlx_mixtral.cli.markdown import THEME
from mlx_mixtral.cli.printable import printable

ANSWER = """# Violins

A **violin** is *played* with a `bow`; see [here](http://x.y) for <b>more</b>.
Second line of a verse.

1. one item that is long and has to wrap at the end of the window because it is so long
2. two
   - nested
   - **more**

```python
def tune(strings):
    return [note + 1 for note in strings]  # a comment much longer than the window is wide
```

| a | b |
|---|---|
| 1 | 2 |

> said
> twice

Title
---
The end.
"""


class Window:
    """A terminal with scrollback that a rich console writes to."""

    def __init__(self, width: int = 40, height: int = 12) -> None:
        self.screen = pyte.HistoryScreen(width, height, history=10_000)
        self._stream = pyte.Stream(self.screen)
        self.written = ""
        self.console = Console(
            file=self,  # type: ignore[arg-type]
            width=width,
            height=height,
            force_terminal=True,
            color_system="standard",
            theme=THEME,
        )

    def write(self, text: str) -> None:
        self.written += text
        self._stream.feed(text.replace("\n", "\r\n"))

    def flush(self) -> None:
        pass

    def lines(self) -> list[str]:
        """Scrollback and screen, without the empty rows below the cursor."""
        above = [
            "".join(row[x].data for x in range(self.screen.columns)).rstrip()
            for row in self.screen.history.top
        ]
        return above + [row.rstrip() for row in self.screen.display[: self.screen.cursor.y]]


def shown(pieces: list[str], **size: int) -> list[str]:
    window = Window(**size)
    view = MarkdownView(window.console)
    for piece in pieces:
        view._next_refresh = 0  # as if time had passed
        view.push(piece)
    view.finish()
    return window.lines()


def cut(text: str, seed: int) -> list[str]:
    dice = random.Random(seed)
    ends = sorted(dice.sample(range(len(text)), len(text) // 4))
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


@pytest.mark.parametrize("height", [4, 12, 60])
def test_streaming_leaves_the_same_lines_as_rendering_at_once(height: int) -> None:
    assert shown(cut(ANSWER, height), height=height) == shown([ANSWER], height=500)


def test_what_rendering_looks_like() -> None:
    lines = shown([ANSWER], width=60, height=60)
    assert lines[0] == "Violins"
    assert lines[2].startswith("A violin is played with a bow; see here (http://x.y) for")
    assert "Second line of a verse." in lines  # line breaks stay
    assert "    • nested" in lines
    assert lines[lines.index("```python") + 1] == "def tune(strings):"  # can be copied
    assert "Title" in lines  # dashes below a paragraph are a rule and no heading
    assert lines[-1] == "The end."


def test_an_unfinished_answer_is_shown_whole() -> None:
    assert shown(["Some **bo"]) == ["Some **bo"]
    assert shown(["```python\nx = 1"]) == ["```python", "x = 1", "```"]
    assert shown([]) == [""]


def test_code_taller_than_the_window_stands_once_in_the_scrollback() -> None:
    code = ["```", *(f"line {n}" for n in range(50)), "```"]
    assert shown([f"{line}\n" for line in code], height=6) == code


def test_only_what_changed_is_drawn_again() -> None:
    window = Window()
    view = MarkdownView(window.console)
    words = [f"word{n} " for n in range(60)]
    for word in words:
        view._next_refresh = 0
        view.push(word)
    # Redrawing whole paragraphs would take a quadratic number of characters.
    assert len(window.written) < 60 * 100


def test_a_narrower_window_gets_the_text_wrapped_anew() -> None:
    window = Window(width=60)
    view = MarkdownView(window.console)
    view.push("A violin is a stringed instrument that is played with a bow.")
    window.console.size = (30, 12)  # type: ignore[assignment]
    window.screen.resize(12, 30)
    view.finish()
    assert " ".join(window.lines()[-3:]).endswith("that is played with a bow.")


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab1 \n\t*_`#->|.!:[]()<&~=\\"), max_size=60), st.integers(0, 99))
def test_no_text_upsets_it(text: str, seed: int) -> None:
    pieces = cut(text, seed)
    assert shown(pieces, height=80) == shown([text], height=80)


def test_escape_sequences_are_shown_and_not_sent() -> None:
    evil = "\x1b[31mred\x1b]0;title\x07 \x9b2J \x00\x7f\r\n\tend"
    assert printable(evil) == "␛[31mred␛]0;title␇ \ufffd2J ␀␡\n\tend"
    window = Window()
    view = PlainView(window.console)
    view.push(evil)
    view.finish()
    assert "\x1b" not in window.written
    markdown = Window()
    view = MarkdownView(markdown.console)
    view.push(f"{evil} &#27;[2J &#155; `\x1b[2J`\n\n```\n\x1b[2J\n```")
    view.finish()
    assert "\x1b[2J" not in markdown.written
    assert "\x1b]" not in markdown.written
    assert "\x9b" not in markdown.written
