"""Tab completion of commands and their arguments."""

from collections.abc import Iterable, Iterator

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from mlx_mixtral.cli.chat_commands import COMMANDS, SETTINGS, TOPICS


class ChatCompleter(Completer):
    """Completes on the first line only, where commands stand."""

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        command, space, argument = text.partition(" ")
        if not space:
            yield from _words(command, [f"/{name}" for name in COMMANDS])
        elif command in ("/save", "/load", "/read"):
            path = Document(argument, len(argument))
            yield from PathCompleter(expanduser=True).get_completions(path, event)
        elif command == "/show":
            yield from _words(argument, TOPICS)
        elif command == "/set":
            name, space, value = argument.partition(" ")
            choices = ("on", "off") if name == "markdown" else ("default",)
            yield from _words(value, choices) if space else _words(name, SETTINGS)


def _words(begun: str, words: Iterable[str]) -> Iterator[Completion]:
    return (Completion(word, -len(begun)) for word in words if word.startswith(begun))
