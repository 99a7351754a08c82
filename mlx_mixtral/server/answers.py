"""What the engine tells about an answer, read as what clients are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from mlx_mixtral.server.failure import Refusal
from mlx_mixtral.server.jobs import Done, Event, Piece, TokenInfo
from mlx_mixtral.server.plan import Plan
from mlx_mixtral.server.tickets import Ticket
from mlx_mixtral.server.tools import CallPart, CallReader
from mlx_mixtral.tokenizer import Tokenizer


@dataclass(frozen=True)
class Part:
    """More of an answer, or its end.

    Attributes:
        text: of the message.
        calls: of functions.
        tokens: that make up both.
        reason: "stop", "length" or "tool_calls" at the end, and None before.
        done: what the engine tells at the end.
    """

    text: str = ""
    calls: tuple[CallPart, ...] = ()
    tokens: tuple[TokenInfo, ...] = ()
    reason: str | None = None
    done: Done | None = None


class AnswerReader:
    """Reads the events of one job."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._mark = tokenizer, plan.calls
        self._goes_on = plan.goes_on
        self._before = plan.prefix
        self._held = ""
        self._calls: CallReader | None = None
        self._called = False

    def read(self, event: Event) -> Part:
        """What an event means.

        Raises:
            Refusal: the engine failed, or was told to give the job up.
        """
        if isinstance(event, Done):
            return self._end(event)
        text = self._before + self._space(event) + event.text
        self._before = ""
        if event.tokens and self._calls is None and event.tokens[0].id == self._mark:
            self._calls = CallReader()
        return self._part(text, event.tokens)

    def _end(self, done: Done) -> Part:
        if done.reason == "error":
            raise Refusal(500, f"the answer failed: {done.message}", code="generation_failed")
        if done.reason == "grammar":
            raise Refusal(400, f"the answer failed: {done.message}", code="schema_too_costly")
        if done.reason == "cancelled":
            raise Refusal(503, "the answer was given up: the server is stopping", code="stopping")
        reason = "tool_calls" if self._called and done.reason == "stop" else done.reason
        return Part(self._before + self._held, reason=reason, done=done)

    def _space(self, piece: Piece) -> str:
        """The space before the first word, which the engine leaves out of an answer's text."""
        spelled = [self._tokenizer.bytes_of(token.id) for token in piece.tokens]
        if not self._goes_on or not any(spelled):
            return ""
        self._goes_on = False
        first = next(text for text in spelled if text)
        return " " if first.startswith(b" ") else ""

    def _part(self, text: str, tokens: tuple[TokenInfo, ...]) -> Part:
        if self._calls is None and isinstance(self._mark, str):
            text = self._without_mark(text, self._mark)
        if self._calls is None:
            return Part(text, tokens=tokens)
        calls = tuple(self._calls.push(text))
        self._called = self._called or bool(calls)
        return Part(calls=calls, tokens=tokens)

    def _without_mark(self, text: str, mark: str) -> str:
        """Holds text back until it is clear whether it is the mark that calls begin with."""
        held = self._held + text
        begin = held.lstrip(" ")
        if begin.startswith(mark):
            self._calls, self._held = CallReader(), ""
            return begin.removeprefix(mark)
        if mark.startswith(begin):
            self._held = held
            return ""
        self._held, self._mark = "", None
        return held


@dataclass
class Answer:
    """A whole answer, put together from its parts."""

    texts: list[str] = field(default_factory=list)
    calls: list[dict[str, str]] = field(default_factory=list)
    tokens: list[TokenInfo] = field(default_factory=list)
    reason: str = ""
    done: Done | None = None

    @property
    def text(self) -> str:
        """The message."""
        return "".join(self.texts)

    def add(self, part: Part) -> None:
        """One part more."""
        self.texts.append(part.text)
        self.tokens += part.tokens
        for call in part.calls:
            if call.name is not None:
                self.calls.append({"id": call.id or "", "name": call.name, "arguments": ""})
            self.calls[call.index]["arguments"] += call.arguments
        if part.done:
            self.reason, self.done = part.reason or "stop", part.done


@dataclass(frozen=True)
class Usage:
    """Tokens of a request: its prompts count once, whatever the number of answers.

    Of those ``drafted`` for the answers, ``accepted`` came true.
    """

    prompt: int
    cached: int
    completion: int
    drafted: int = 0
    accepted: int = 0

    @classmethod
    def of(cls, done: Sequence[Done], answers_each: int = 1) -> Usage:
        """Of all answers, ``answers_each`` to each prompt."""
        firsts = done[::answers_each]
        return cls(
            sum(d.prompt_tokens for d in firsts),
            sum(d.cached_tokens for d in firsts),
            sum(d.completion_tokens for d in done),
            sum(d.drafted_tokens for d in done),
            sum(d.accepted_tokens for d in done),
        )


async def events_of(tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, Event]]:
    """(which, event) of all tickets as they come, until the last is done."""
    if len(tickets) == 1:
        async for event in tickets[0]:
            yield 0, event
        return
    arrived: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    async def pass_on(index: int, ticket: Ticket) -> None:
        async for event in ticket:
            arrived.put_nowait((index, event))

    tasks = [asyncio.create_task(pass_on(n, ticket)) for n, ticket in enumerate(tickets)]
    try:
        open_tickets = len(tickets)
        while open_tickets:
            index, event = await arrived.get()
            yield index, event
            open_tickets -= isinstance(event, Done)
    finally:
        for task in tasks:
            task.cancel()
