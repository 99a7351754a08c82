"""The answer to ``POST /v1/responses``: an object, whole or event by event."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlx_mixtral.server.answers import Answer, Part, Usage
from mlx_mixtral.server.failure import json_bytes, refusal_of
from mlx_mixtral.server.jobs import TokenInfo
from mlx_mixtral.server.replies import logprob_objects
from mlx_mixtral.server.responses.request import ResponsesRequest
from mlx_mixtral.server.tools import CallPart
from mlx_mixtral.tokenizer import Tokenizer

Event = tuple[str, dict[str, Any]]


class ResponsesReply:
    """One answer: a message, or calls of functions, or both, which are the items of its output."""

    def __init__(self, request: ResponsesRequest, model: str, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._logprobs = tokenizer, request.tells_logprobs
        self._response = _opened(request, model)
        self._number = 0  # of the next event
        self._items: list[dict[str, Any]] = []  # the last one may be open
        self._reason: str | None = None
        self._waiting: list[TokenInfo] = []  # tokens whose text is still to come

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        """The response at once."""
        (answer,) = answers
        items: list[dict[str, Any]] = []
        if answer.text or not answer.calls:
            items.append(_message(answer.text, self._told(answer.tokens)))
        items += [_call(call["id"], call["name"], call["arguments"]) for call in answer.calls]
        self._reason = answer.reason
        closed = [_closed(item, "stop") for item in items[:-1]]
        return self._over([*closed, _closed(items[-1], answer.reason)], usage)

    def first(self, index: int) -> bytes:
        """The response, empty."""
        return self._frames(
            ("response.created", {"response": self._response}),
            ("response.in_progress", {"response": self._response}),
        )

    def chunk(self, index: int, part: Part, usage: Usage | None) -> bytes | None:
        """More of the item that is open, and new ones."""
        self._reason = part.reason
        return self._frames(*self._events(part)) or None

    def end(self, usage: Usage | None) -> bytes:
        """The whole response."""
        response = self._over(self._items, usage)
        return self._frames((f"response.{response['status']}", {"response": response}))

    def failed(self, error: Exception) -> bytes:
        """The response with the error in it."""
        told = {"code": "server_error", "message": str(refusal_of(error))}
        response = {**self._response, "status": "failed", "error": told, "output": self._items}
        return self._frames(("response.failed", {"response": response}))

    def _over(self, items: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        cut = self._reason == "length"
        return {
            **self._response,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "completed_at": None if cut else int(time.time()),
            "output": items,
            "usage": _usage_object(usage) if usage else None,
        }

    # --- the events of a stream

    def _events(self, part: Part) -> Iterator[Event]:
        self._waiting += part.tokens
        if part.text:
            yield from self._more_text(part.text)
        for call in part.calls:
            yield from self._more_of_call(call)
        if part.done:
            if not self._items or (self._waiting and self._message_is_open):
                yield from self._more_text("")
            yield from self._close(part.reason)

    @property
    def _message_is_open(self) -> bool:
        return bool(self._items) and self._items[-1]["type"] == "message"

    def _more_text(self, text: str) -> Iterator[Event]:
        if not self._message_is_open:
            yield from self._open(_message("", []))
            empty = {**self._items[-1]["content"][0], "text": ""}
            yield "response.content_part.added", {**self._place(), "part": empty}
        told = self._told(self._waiting)
        self._waiting = []
        held = self._items[-1]["content"][0]
        held["text"] += text
        held["logprobs"] += told
        if text or told:
            delta = {**self._place(), "delta": text, "logprobs": told}
            yield "response.output_text.delta", delta

    def _more_of_call(self, call: CallPart) -> Iterator[Event]:
        self._waiting = []  # a call has no place for them
        if call.name is not None:
            yield from self._close("tool_calls")
            yield from self._open(_call(call.id or "", call.name, ""))
        self._items[-1]["arguments"] += call.arguments
        if call.arguments:
            delta = {**self._place(part=False), "delta": call.arguments}
            yield "response.function_call_arguments.delta", delta

    def _open(self, item: dict[str, Any]) -> Iterator[Event]:
        self._items.append(item)
        shown = {**item, "content": []} if item["type"] == "message" else dict(item)
        about = {"output_index": len(self._items) - 1, "item": shown}
        yield "response.output_item.added", about

    def _close(self, reason: str | None) -> Iterator[Event]:
        """The open item ends, if there is one."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return
        item = _closed(self._items[-1], reason)
        self._items[-1] = item
        if item["type"] == "message":
            held = item["content"][0]
            said = {"text": held["text"], "logprobs": held["logprobs"]}
            yield "response.output_text.done", {**self._place(), **said}
            yield "response.content_part.done", {**self._place(), "part": held}
        else:
            said = {"arguments": item["arguments"], "name": item["name"]}
            yield "response.function_call_arguments.done", {**self._place(part=False), **said}
        about = {"output_index": len(self._items) - 1, "item": item}
        yield "response.output_item.done", about

    def _place(self, part: bool = True) -> dict[str, Any]:
        """Where the open item stands, or its part."""
        place = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        return {**place, "content_index": 0} if part else place

    def _told(self, tokens: Sequence[TokenInfo]) -> list[dict[str, Any]]:
        return logprob_objects(tokens, self._tokenizer) if self._logprobs else []

    def _frames(self, *events: Event) -> bytes:
        frames = []
        for kind, about in events:
            data = {"type": kind, "sequence_number": self._number, **about}
            frames.append(b"event: " + kind.encode() + b"\ndata: " + json_bytes(data) + b"\n\n")
            self._number += 1
        return b"".join(frames)


def _opened(request: ResponsesRequest, model: str) -> dict[str, Any]:
    """The response before anything was said: what was asked for, as it is understood."""
    asked = request.model_dump(by_alias=True)
    given = (request.text and request.text.format and asked["text"]["format"]) or {"type": "text"}
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": request.temperature,
        "text": {"format": given},
        "tool_choice": asked["tool_choice"] or "auto",
        "tools": [{"strict": None, **tool} for tool in asked["tools"] or []],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }


def _message(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    """A message that is open."""
    content = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
    return {
        "type": "message",
        "id": f"msg_{secrets.token_hex(16)}",
        "status": "in_progress",
        "role": "assistant",
        "content": [content],
    }


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call that is open."""
    return {
        "type": "function_call",
        "id": f"fc_{secrets.token_hex(16)}",
        "call_id": call_id,
        "status": "in_progress",
        "name": name,
        "arguments": arguments,
    }


def _closed(item: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
    return {**item, "status": "incomplete" if reason == "length" else "completed"}


def _usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    }
