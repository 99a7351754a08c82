"""The line where a person types: history, completion, several lines, an editor."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from mlx_mixtral.cli.chat_completer import ChatCompleter

QUOTES = '"""'
HOW_TO_LEAVE = "Ctrl-D or /exit leaves."
STYLE = Style.from_dict(
    {
        "prompt": "bold",
        "hint": "ansibrightblack",
        "bottom-toolbar": "noreverse ansibrightblack",
    }
)


class Prompt(Protocol):
    """Where messages and commands come from."""

    def read(self, attached: int) -> str:
        """One message or command, with the number of files that go with it in view.

        Raises EOFError for Ctrl-D on an empty line.
        """
        ...


class DumbPrompt:
    """For terminals that know no escape sequences, such as a shell inside Emacs."""

    def read(self, attached: int) -> str:
        text = input(f"{_files(attached)}> ")
        while _quotes_are_open(text):
            text += "\n" + input(". ")
        return text


class ChatPrompt:
    """Reads messages and commands, above a line that tells how the conversation stands."""

    def __init__(self, *, status: Callable[[], str], history: bool) -> None:
        self._hint = ""
        self._status = status
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            history=_file_history() if history else InMemoryHistory(),
            completer=ChatCompleter(),
            complete_while_typing=False,
            key_bindings=self._keys(),
            prompt_continuation=FormattedText([("class:prompt", "… ")]),
            bottom_toolbar=lambda: self._hint or self._status(),
            tempfile_suffix=".md",
            style=STYLE,
        )

    def read(self, attached: int) -> str:
        self._hint = ""
        parts = [("class:hint", _files(attached)), ("class:prompt", "> ")]
        return self._session.prompt(FormattedText(parts))

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.complete_state and buffer.complete_state.current_completion:
                buffer.complete_state = None  # take the completion
            elif _quotes_are_open(buffer.text):
                buffer.newline(copy_margin=False)
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        @keys.add("c-g")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.open_in_editor()

        @keys.add("c-c")
        def _(event: KeyPressEvent) -> None:
            if not event.current_buffer.text:
                self._hint = HOW_TO_LEAVE
            event.current_buffer.reset()

        return keys


def _files(count: int) -> str:
    return f"({count} file{'s' * (count > 1)}) " if count else ""


def _quotes_are_open(text: str) -> bool:
    text = text.strip()
    return text.startswith(QUOTES) and not (len(text) > len(QUOTES) and text.endswith(QUOTES))


def _file_history() -> History:
    """What was typed in earlier chats, in a file for the user's eyes only."""
    path = history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        with path.open("a"):
            pass
    except OSError as error:
        print(f"no history: {path}: {error.strerror}", file=sys.stderr)
        return InMemoryHistory()
    return FileHistory(path)


def history_path() -> Path:
    """Where history is kept; ``MIXTRAL_MLX_HOME`` moves it with everything else."""
    if home := os.environ.get("MIXTRAL_MLX_HOME"):
        return Path(home).expanduser() / "history"
    import platformdirs

    return Path(platformdirs.user_state_dir("mixtral-mlx")) / "history"
