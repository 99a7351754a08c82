"""One model being served: requests in, answers out, whatever the route."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from mlx_mixtral.server.answers import Answer, AnswerReader, Usage, events_of
from mlx_mixtral.server.asgi import until_gone
from mlx_mixtral.server.engine import Engine
from mlx_mixtral.server.failure import ClientGone, json_bytes
from mlx_mixtral.server.jobs import Busy
from mlx_mixtral.server.names import ServedModel
from mlx_mixtral.server.plan import Plan, Planner
from mlx_mixtral.server.record import Record, record_of
from mlx_mixtral.server.replies import ChatReply, CompletionReply, Reply
from mlx_mixtral.server.responses.reply import ResponsesReply
from mlx_mixtral.server.responses.request import ResponsesRequest
from mlx_mixtral.server.schema import ChatRequest, CompletionRequest
from mlx_mixtral.server.settings import Settings
from mlx_mixtral.server.stream import Stream
from mlx_mixtral.server.tickets import Ticket

if TYPE_CHECKING:
    from mlx_mixtral.loading import LanguageModel

T = TypeVar("T")


class JSONReply(Response):
    """A reply in JSON, whatever text is in it."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return json_bytes(content)


class Service:
    """A loaded model and its engine.

    Attributes:
        lm, engine, settings: what it was made of.
        model: what clients are told about the model.
        stopping: no new request is taken any more.
    """

    def __init__(self, lm: LanguageModel, engine: Engine, settings: Settings) -> None:
        self.lm, self.engine, self.settings = lm, engine, settings
        self.model = ServedModel.of(lm, settings.name, settings.aliases)
        self.planner = Planner(lm, settings.speculates)
        self.stopping = False

    def stop(self) -> None:
        """Take no more requests; those under way go on."""
        self.stopping = True

    def check_open(self) -> None:
        """Raises Busy once no more requests are taken."""
        if self.stopping:
            raise Busy("the server is stopping", None)

    async def chat(self, request: Request, asked: ChatRequest) -> Response:
        """Answers a conversation."""
        self.model.check(asked.model)
        client = request.headers.get("user-agent", "").lower()
        # Mistral's API streams a call as a whole, and its clients can read no other.
        mistral = asked.model in self.model.hosted or asked.tool_choice == "any"
        whole_calls = mistral or "mistral" in client
        reply = ChatReply(asked, self.model.id, self.lm.tokenizer, whole_calls)
        return await self.answer(request, asked, reply)

    async def respond(self, request: Request, asked: ResponsesRequest) -> Response:
        """The same in OpenAI's newer form."""
        self.model.check(asked.model)
        reply = ResponsesReply(asked, self.model.id, self.lm.tokenizer)
        return await self.answer(request, asked.as_chat(), reply)

    async def complete(self, request: Request, asked: CompletionRequest) -> Response:
        """Continues texts."""
        self.model.check(asked.model)
        reply = CompletionReply(asked, self.model.id, self.lm.tokenizer)
        return await self.answer(request, asked, reply)

    async def embedded(self, request: Request, prompts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """The mean of the last hidden states of each prompt [n, D]."""
        self.check_open()
        return await unless_gone(request, self.engine.embed(prompts))

    async def answer(
        self,
        request: Request,
        asked: ChatRequest | CompletionRequest,
        reply: Reply,
        lines: Callable[[], bytes] | None = None,
    ) -> Response:
        """Answers, told as ``reply`` has it.

        Args:
            lines: a stream is of lines, not events, and this makes one that says nothing.
        """
        plan = await asyncio.to_thread(self.planner.plan, asked)
        record = record_of(request.scope)
        if self.settings.log_prompts:
            record.asked = asked.model_dump(include={"messages", "prompt"}, exclude_none=True)
        tickets = self.submit(plan)
        if asked.stream:
            frames = self._frames(tickets, plan, reply, record)
            pause = self.settings.limits.keep_alive_seconds
            return Stream(frames, pause, lambda: cancel(tickets), lines)
        try:
            work = self._whole(tickets, plan, record)
            answers, usage = await unless_gone(request, work)
        finally:
            cancel(tickets)
        return JSONReply(reply.whole(answers, usage))

    def submit(self, plan: Plan) -> list[Ticket]:
        """All jobs of a plan, or none of them. Raises as the engine's ``submit``."""
        self.check_open()
        tickets: list[Ticket] = []
        try:
            for job in plan.jobs:
                tickets.append(self.engine.submit(job))
        except BaseException:
            cancel(tickets)
            raise
        return tickets

    async def _whole(
        self, tickets: Sequence[Ticket], plan: Plan, record: Record
    ) -> tuple[list[Answer], Usage]:
        readers = [AnswerReader(plan, self.lm.tokenizer) for _ in tickets]
        answers = [Answer() for _ in tickets]
        async for index, event in events_of(tickets):
            answers[index].add(readers[index].read(event))
        return answers, _noted(record, answers, plan.each)

    async def _frames(
        self, tickets: Sequence[Ticket], plan: Plan, reply: Reply, record: Record
    ) -> AsyncIterator[bytes]:
        readers = [AnswerReader(plan, self.lm.tokenizer) for _ in tickets]
        answers = [Answer() for _ in tickets]
        last = None
        try:
            for index in range(len(tickets)):
                if opening := reply.first(index):
                    yield opening
            async for index, event in events_of(tickets):
                part = readers[index].read(event)
                answers[index].add(part)
                if all(answer.done for answer in answers):
                    last = _noted(record, answers, plan.each)
                if chunk := reply.chunk(index, part, last):
                    yield chunk
            yield reply.end(last)
        except Exception as error:
            record.failure = error
            yield reply.failed(error)


def cancel(tickets: Sequence[Ticket]) -> None:
    """Gives jobs up; nothing happens to those that are over."""
    for ticket in tickets:
        ticket.cancel()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` comes to. Raises ClientGone, and ends it, when the client leaves."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


def _noted(record: Record, answers: Sequence[Answer], answers_each: int) -> Usage:
    """The usage of answers that are all over; what the log has to know of them."""
    done = [answer.done for answer in answers if answer.done]
    record.usage = Usage.of(done, answers_each)
    record.first_s = min((d.first_s for d in done if d.first_s), default=None)
    if record.asked is not None:
        record.answered = [answer.text for answer in answers]
    return record.usage
