"""The commands of a conversation in a terminal."""

import dataclasses
import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_mixtral.chat import Chat, kv_path
from mlx_mixtral.cli.options import parse_logit_bias
from mlx_mixtral.cli.sizes import size
from mlx_mixtral.errors import ContextError, UsageError
from mlx_mixtral.generation.kv import KVSettings
from mlx_mixtral.generation.sampling import Sampling

if TYPE_CHECKING:
    from mlx_mixtral.cli.chat_terminal import ChatTerminal

SAMPLING = [field.name for field in dataclasses.fields(Sampling)]
SETTINGS = ["markdown", *SAMPLING]


def run_command(terminal: "ChatTerminal", line: str) -> None:
    """Run one line that starts with a slash. Raises UsageError for an unknown one."""
    name, _, argument = line[1:].strip().partition(" ")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists them all"
        raise UsageError(f"there is no command /{name}; {hint}")
    COMMANDS[name].run(terminal, argument.strip())


def help_(terminal: "ChatTerminal", _: str) -> None:
    width = max(len(f"{name} {command.takes}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        terminal.tell(f"/{f'{name} {command.takes}':<{width}}  {command.does}")
    terminal.tell(
        '\n"""        starts a message of several lines, and ends it\n'
        "Esc Enter  starts a new line\n"
        "Ctrl-G     opens your editor\n"
        "Ctrl-C     stops an answer, clears a line\n"
        "Ctrl-D     leaves\n"
        "A message that begins with a slash needs a space before it."
    )


def new(terminal: "ChatTerminal", _: str) -> None:
    terminal.chat.reset()
    terminal.attached.clear()
    terminal.file = None
    terminal.tell("A new conversation.")


def system(terminal: "ChatTerminal", text: str) -> None:
    if text:
        terminal.chat.system = None if text == "none" else text
    terminal.tell(f"System prompt: {terminal.chat.system or 'none'}")


def set_(terminal: "ChatTerminal", argument: str) -> None:
    name, _, text = argument.partition(" ")
    if name not in SETTINGS or not text.strip():
        raise UsageError(f"/set NAME VALUE, where NAME is one of {', '.join(SETTINGS)}")
    if name == "markdown":
        if text not in ("on", "off"):
            raise UsageError("markdown is on or off")
        terminal.markdown = text == "on"
    else:
        value = _sampling_value(name, text.strip())
        terminal.chat.sampling = dataclasses.replace(terminal.chat.sampling, **{name: value})
    terminal.tell(f"{name} = {_settings(terminal)[name]}")


def show(terminal: "ChatTerminal", topic: str) -> None:
    topic = topic or "settings"
    if topic not in TOPICS:
        raise UsageError(f"/show one of {', '.join(TOPICS)}")
    TOPICS[topic](terminal)


def save(terminal: "ChatTerminal", name: str) -> None:
    _save(terminal, name, text_only=False)


def save_text(terminal: "ChatTerminal", name: str) -> None:
    _save(terminal, name, text_only=True)


def _save(terminal: "ChatTerminal", name: str, text_only: bool) -> None:
    path = Path(name).expanduser() if name else terminal.file
    if path is None:
        raise UsageError("/save FILE: this conversation has no file yet")
    if path.exists() and path != terminal.file:
        raise UsageError(f"{path} exists; choose another name")
    terminal.chat.save(path, text_only=text_only)
    terminal.file = path
    beside = kv_path(path)
    if text_only or not beside.exists():
        terminal.tell(f"Saved to {path}")
    else:
        terminal.tell(f"Saved to {path} and {beside} ({size(beside.stat().st_size)})")


def load(terminal: "ChatTerminal", name: str) -> None:
    if not name:
        raise UsageError("/load FILE: which one?")
    path = Path(name).expanduser()
    asked = None if terminal.chat.kv == KVSettings() else terminal.chat.kv
    terminal.chat = Chat.load(terminal.lm, path, kv=asked, draft=terminal.chat.draft)
    terminal.file = path
    terminal.tell(f"{_turns(terminal.chat)} from {path}")


def regen(terminal: "ChatTerminal", _: str) -> None:
    terminal.answer(terminal.chat.regenerate())


def undo(terminal: "ChatTerminal", _: str) -> None:
    if not terminal.chat.undo():
        raise UsageError("there is nothing to undo")
    terminal.tell(f"Took the last turn back; {_turns(terminal.chat)} left.")


def read(terminal: "ChatTerminal", name: str) -> None:
    if not name:
        raise UsageError("/read FILE: which one?")
    path = Path(name).expanduser()
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    if not text.strip():
        raise UsageError(f"{path} is empty")
    tokens, limit = len(terminal.lm.tokenizer.encode(text)), terminal.chat.context_limit
    if tokens >= limit:
        raise ContextError(f"{path} has {tokens:,} tokens, more than the context of {limit:,}")
    terminal.attached.append((path.name, text.strip()))
    terminal.tell(f"{path} ({tokens:,} tokens) goes with the next message.")


def stats(terminal: "ChatTerminal", _: str) -> None:
    if terminal.chat.last is None:
        raise UsageError("there is no answer yet")
    figures = dataclasses.asdict(terminal.chat.last.stats)
    for name, value in (figures | (figures.pop("streamed") or {})).items():
        terminal.tell(f"{name} = {value:.3g}" if isinstance(value, float) else f"{name} = {value}")


def exit_(terminal: "ChatTerminal", _: str) -> None:
    terminal.open = False


def _show_settings(terminal: "ChatTerminal") -> None:
    for name, value in _settings(terminal).items():
        terminal.tell(f"{name} = {value}")


def _show_messages(terminal: "ChatTerminal") -> None:
    for message in terminal.chat.messages:
        terminal.tell(f"{message['role']}: {message['content']}")


def _show_model(terminal: "ChatTerminal") -> None:
    config = terminal.lm.config
    terminal.tell(f"{terminal.lm.name} in {terminal.lm.path}")
    terminal.tell(
        f"{config.num_hidden_layers} layers of {config.hidden_size}, "
        f"{config.num_experts_per_tok} of {config.num_local_experts} experts a token, "
        f"context {terminal.chat.context_limit:,}"
    )
    used, most = size(terminal.chat.kv_used), size(terminal.chat.kv_limit)
    terminal.tell(f"{terminal.chat.kv}: {used} now, {most} when the context is full")


def _settings(terminal: "ChatTerminal") -> dict[str, str]:
    markdown = {"markdown": "on" if terminal.markdown else "off"}
    values = {name: getattr(terminal.chat.sampling, name) for name in SAMPLING}
    return markdown | {k: "none" if v is None else str(v) for k, v in values.items()}


def _sampling_value(name: str, text: str) -> Any:
    if text == "default":
        return getattr(Sampling(), name)
    if name == "stop":
        return (text,)
    if name == "logit_bias":
        return parse_logit_bias(text.split())
    try:
        return json.loads("null" if text == "none" else text)
    except json.JSONDecodeError:
        raise UsageError(f"{name} takes a number, not {text!r}") from None


def _turns(chat: Chat) -> str:
    count = sum(message["role"] == "user" for message in chat.messages)
    return f"{count} turn" if count == 1 else f"{count} turns"


@dataclasses.dataclass(frozen=True)
class Command:
    takes: str
    does: str
    run: Callable[["ChatTerminal", str], None]


COMMANDS = {
    "help": Command("", "this list", help_),
    "new": Command("", "start over, with the same system prompt", new),
    "system": Command("[TEXT|none]", "show or change the system prompt", system),
    "set": Command("NAME VALUE", "change a setting", set_),
    "show": Command("[TOPIC]", "settings, messages, system or model", show),
    "save": Command("[FILE]", "write the conversation to a file, keys and values beside it", save),
    "save-text": Command("[FILE]", "write the conversation alone", save_text),
    "load": Command("FILE", "go on with a saved conversation", load),
    "regen": Command("", "answer the last message again", regen),
    "undo": Command("", "take the last message and its answer back", undo),
    "read": Command("FILE", "put a file's text into the next message", read),
    "stats": Command("", "figures of the last answer", stats),
    "exit": Command("", "leave", exit_),
}
TOPICS: dict[str, Callable[["ChatTerminal"], None]] = {
    "settings": _show_settings,
    "messages": _show_messages,
    "system": lambda terminal: system(terminal, ""),
    "model": _show_model,
}
