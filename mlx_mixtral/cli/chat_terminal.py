"""A conversation in a terminal: read, answer, repeat."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from mlx_mixtral.chat import Chat
from mlx_mixtral.cli.answer_view import AnswerView, MarkdownView, PlainView
from mlx_mixtral.cli.chat_commands import run_command
from mlx_mixtral.cli.chat_prompt import HOW_TO_LEAVE, QUOTES, ChatPrompt, DumbPrompt, Prompt
from mlx_mixtral.cli.input_text import checked
from mlx_mixtral.cli.interrupt import interrupt_asks
from mlx_mixtral.cli.keyboard import keys_unechoed
from mlx_mixtral.cli.markdown import THEME
from mlx_mixtral.cli.printable import printable
from mlx_mixtral.cli.sizes import size
from mlx_mixtral.cli.streamed_view import brief
from mlx_mixtral.errors import MixtralError

if TYPE_CHECKING:
    from mlx_mixtral.generation.text import Piece
    from mlx_mixtral.loading import LanguageModel


class ChatTerminal:
    """The state that the commands act on, and the loop."""

    def __init__(
        self, lm: "LanguageModel", chat: Chat, *, markdown: bool = True, history: bool = True
    ) -> None:
        self.lm = lm
        self.chat = chat
        self.markdown = markdown
        self.attached: list[tuple[str, str]] = []  # (file name, text) for the next message
        self.file: Path | None = None  # where this conversation was saved or came from
        self.open = True
        self._dropped = 0  # turns that the last prompt left out
        self._name = Path(lm.name).name or lm.path.name
        self._console = Console(theme=THEME, highlight=False, emoji=False)
        self._prompt: Prompt
        if self._console.is_dumb_terminal:
            self._prompt = DumbPrompt()
        else:
            self._prompt = ChatPrompt(status=self._status, history=history)

    def run(self) -> None:
        limit, most = self.chat.context_limit, size(self.chat.kv_limit)
        own = self.chat.lm.own_context
        of_its = f" of {own:,}" if limit < own else ""
        context = f"{limit:,}{of_its} tokens of context (up to {most})"
        self.tell(f"{self._name}, {context}. /help lists the commands.")
        if (streaming := self.lm.streaming) and streaming.share < 1:
            self.tell(f"{streaming.share:.0%} of the experts are in memory, the others on disk.")
        while self.open:
            try:
                self._act_on(self._prompt.read(len(self.attached)))
            except EOFError:
                return
            except KeyboardInterrupt:  # at a dumb prompt, or just after an answer
                self.tell(HOW_TO_LEAVE)
            except MixtralError as error:
                self.complain(str(error))
            except OSError as error:
                self.complain(f"{error.filename or 'output'}: {error.strerror}")

    def tell(self, text: str) -> None:
        """Something that is not the model's."""
        self._console.print(printable(text), style="dim", markup=False)

    def complain(self, text: str) -> None:
        self._console.print(f"error: {printable(text)}", style="red", markup=False)

    def answer(self, pieces: Iterator["Piece"]) -> None:
        """Show an answer as it comes; Ctrl-C ends it, a second Ctrl-C at once."""
        reason: str | None = None
        self._console.print()
        view: AnswerView = (MarkdownView if self._can_redraw else PlainView)(self._console)
        try:
            with closing(pieces), keys_unechoed(), interrupt_asks(self.chat.stop):  # type: ignore[type-var]
                for piece in pieces:
                    view.push(piece.text)
                    reason = piece.finish_reason
        except KeyboardInterrupt:
            reason = "interrupted"  # the conversation has kept what was said
        finally:
            view.finish()
        self._console.print()
        self._remark(reason)

    def _remark(self, reason: str | None) -> None:
        """What a person would otherwise wonder about."""
        chat = self.chat
        if reason == "interrupted":
            self.tell("Stopped.")
        if reason == "length" and chat.last is not None:
            cut = chat.last.stats.completion_tokens == chat.sampling.max_tokens
            self.tell("The answer has reached max_tokens." if cut else "The context is full.")
        if chat.dropped and chat.dropped != self._dropped:
            self.tell(f"The oldest turns no longer fit: {chat.dropped} are left out from now on.")
        self._dropped = chat.dropped

    @property
    def _can_redraw(self) -> bool:
        return self.markdown and not self._console.is_dumb_terminal

    def _act_on(self, text: str) -> None:
        checked(text, "the message")
        if text.startswith("/"):
            run_command(self, text)
        elif message := self._with_files(unquoted(text)):
            pieces = self.chat.stream(message)
            self.attached.clear()
            self.answer(pieces)

    def _with_files(self, text: str) -> str:
        parts = [f"{name}:\n\n{content}" for name, content in self.attached] + [text]
        return "\n\n".join(parts).strip()

    def _status(self) -> str:
        chat = self.chat
        used = f"{chat.context_used:,} of {chat.context_limit:,} tokens, {size(chat.kv_used)}"
        parts = [self._name, used]
        if chat.last is not None:
            stats = chat.last.stats
            parts += [f"{stats.generation_tps:.1f} tok/s", f"first token {stats.ttft_s:.2f} s"]
            if stats.streamed:
                parts.append(brief(stats.streamed))
        return printable("  ".join(parts))


def unquoted(text: str) -> str:
    """A message without the triple quotes that let it span lines."""
    text = text.strip()
    if text.startswith(QUOTES):
        text = text.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    return text
