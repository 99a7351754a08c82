"""What answers look like on the wire: OpenAI's objects, whole and in chunks."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from mlx_mixtral.server.answers import Answer, Part, Usage
from mlx_mixtral.server.failure import json_bytes, refusal_of
from mlx_mixtral.server.jobs import TokenInfo
from mlx_mixtral.server.schema import ChatRequest, CompletionRequest, StreamOptions
from mlx_mixtral.server.tools import CallPart
from mlx_mixtral.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"
_LEAST = -9999.0  # what OpenAI says of what cannot be; JSON has no infinity


class Reply(Protocol):
    """How answers are told on one route: as one object, or in the frames of a stream."""

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        """All answers at once."""

    def first(self, index: int) -> bytes | None:
        """What opens an answer."""

    def chunk(self, index: int, part: Part, usage: Usage | None) -> bytes | None:
        """More of an answer, if there is anything to tell; the usage comes with the last part."""

    def end(self, usage: Usage | None) -> bytes:
        """What closes the stream."""

    def failed(self, error: Exception) -> bytes:
        """What closes it instead."""


class ChatReply:
    """The answers to ``POST /v1/chat/completions``."""

    def __init__(
        self, request: ChatRequest, model: str, tokenizer: Tokenizer, whole_calls: bool = False
    ) -> None:
        """``whole_calls``: in a stream a call comes when it is whole."""
        self._tokenizer, self._options = tokenizer, request.stream_options
        self._whole_calls, self._held = whole_calls, dict[int, list[CallPart]]()
        self._logprobs, self._routing = bool(request.logprobs), request.routing
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time())}
        self._model = model
        chunk = {**self._head, "object": "chat.completion.chunk", "model": model}
        self._chunk = json.dumps(chunk)[:-1]

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        """All answers at once."""
        choices = [self._choice(n, answer) for n, answer in enumerate(answers)]
        return {
            **self._head,
            "object": "chat.completion",
            "model": self._model,
            "choices": choices,
            "usage": usage_object(usage),
        }

    def first(self, index: int) -> bytes:
        """The chunk that opens an answer."""
        return self._framed(index, '{"role": "assistant", "content": ""}', "null")

    def chunk(self, index: int, part: Part, usage: Usage | None) -> bytes | None:
        """A chunk, unless there is nothing to tell."""
        told = self._logprobs or self._routing
        usage = None if self._options else usage
        calls = self._whole(index, part) if self._whole_calls else part.calls
        if not (part.text or calls or part.done or (told and part.tokens)):
            return None
        reason = json.dumps(part.reason)
        if not calls and not (told and part.tokens):
            text = f'{{"content": {json.dumps(part.text)}}}' if part.text else "{}"
            return self._framed(index, text, reason, usage=usage)
        delta: dict[str, Any] = {"content": part.text} if part.text else {}
        if calls:
            delta["tool_calls"] = [_call_delta(c.index, c.id, c.name, c.arguments) for c in calls]
        return self._framed(index, json.dumps(delta), reason, self._about(part.tokens), usage)

    def end(self, usage: Usage | None) -> bytes:
        """The usage where the options ask for it, and a mark."""
        return _end(self._chunk, self._options, usage)

    def failed(self, error: Exception) -> bytes:
        """An event with the error."""
        return error_frame(error)

    def _whole(self, index: int, part: Part) -> list[CallPart]:
        """The calls that a part completes, each as one."""
        held, whole = self._held.setdefault(index, []), []
        for call in part.calls:
            if call.name is None:
                held[-1] = replace(held[-1], arguments=held[-1].arguments + call.arguments)
                continue
            whole += held
            held[:] = [call]
        if part.done:
            whole += held
        return whole

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        message["refusal"] = None
        if answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for call in answer.calls
            ]
        choice: dict[str, Any] = {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": answer.reason,
        }
        if self._logprobs:
            choice["logprobs"] = self._token_logprobs(answer.tokens)
        if self._routing:
            choice["routing"] = [token.experts for token in answer.tokens]
        return choice

    def _about(self, tokens: Sequence[TokenInfo]) -> str:
        """Further fields of a chunk's choice."""
        about = ""
        if self._logprobs and tokens:
            about = f', "logprobs": {json.dumps(self._token_logprobs(tokens))}'
        if self._routing and tokens:
            about += f', "routing": {json.dumps([token.experts for token in tokens])}'
        return about

    def _token_logprobs(self, tokens: Sequence[TokenInfo]) -> dict[str, Any]:
        return {"content": logprob_objects(tokens, self._tokenizer), "refusal": None}

    def _framed(
        self, index: int, delta: str, reason: str, about: str = "", usage: Usage | None = None
    ) -> bytes:
        choice = f'{{"index": {index}, "delta": {delta}{about}, "finish_reason": {reason}}}'
        told = _told(usage, self._options)
        return f'data: {self._chunk}, "choices": [{choice}]{told}}}\n\n'.encode()


class CompletionReply:
    """The answers to ``POST /v1/completions``."""

    def __init__(self, request: CompletionRequest, model: str, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._logprobs = tokenizer, request.logprobs is not None
        self._options = request.stream_options
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._chunk = json.dumps(self._head)[:-1]
        self._offsets: dict[int, int] = {}

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        """All answers at once."""
        choices = [
            {
                "index": n,
                "text": answer.text,
                "logprobs": self._token_logprobs(n, answer.tokens) if self._logprobs else None,
                "finish_reason": answer.reason,
            }
            for n, answer in enumerate(answers)
        ]
        return {**self._head, "choices": choices, "usage": usage_object(usage)}

    def first(self, index: int) -> None:
        """Nothing opens an answer."""

    def chunk(self, index: int, part: Part, usage: Usage | None) -> bytes | None:
        """A chunk, unless there is nothing to tell."""
        usage = None if self._options else usage
        if not (part.text or part.done or (self._logprobs and part.tokens)):
            return None
        told = self._logprobs and part.tokens
        choice = {
            "index": index,
            "text": part.text,
            "logprobs": self._token_logprobs(index, part.tokens) if told else None,
            "finish_reason": part.reason,
        }
        usage_told = _told(usage, self._options)
        text = f'{self._chunk}, "choices": [{json.dumps(choice)}]{usage_told}}}'
        return f"data: {text}\n\n".encode()

    def end(self, usage: Usage | None) -> bytes:
        """The usage where the options ask for it, and a mark."""
        return _end(self._chunk, self._options, usage)

    def failed(self, error: Exception) -> bytes:
        """An event with the error."""
        return error_frame(error)

    def _token_logprobs(self, index: int, tokens: Iterable[TokenInfo]) -> dict[str, Any]:
        """OpenAI's lists, one entry a token; offsets count characters of the answer."""
        told: dict[str, list[Any]] = {
            name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        at = self._offsets.get(index, 0)
        for token in tokens:
            text = self._spelled(token.id)
            told["tokens"].append(text)
            told["token_logprobs"].append(max(token.logprob, _LEAST))
            told["top_logprobs"].append({self._spelled(i): max(p, _LEAST) for i, p in token.top})
            told["text_offset"].append(at)
            at += len(text)
        self._offsets[index] = at
        return told

    def _spelled(self, token_id: int) -> str:
        return self._tokenizer.bytes_of(token_id).decode("utf-8", "replace")


def logprob_objects(tokens: Iterable[TokenInfo], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """OpenAI's objects of tokens with their log-probabilities, and of what else was likely."""

    def told(token_id: int, logprob: float) -> dict[str, Any]:
        spelled = tokenizer.bytes_of(token_id)
        return {
            "token": spelled.decode("utf-8", "replace"),
            "logprob": max(logprob, _LEAST),
            "bytes": list(spelled),
        }

    return [
        {**told(token.id, token.logprob), "top_logprobs": [told(*other) for other in token.top]}
        for token in tokens
    ]


def error_frame(error: Exception) -> bytes:
    """An error inside of a stream, where the status has long been sent."""
    return b"data: " + json_bytes(refusal_of(error).body) + b"\n\n"


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's account of a request."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {
            "accepted_prediction_tokens": usage.accepted,
            "rejected_prediction_tokens": usage.drafted - usage.accepted,
        },
    }


def _end(chunk: str, options: StreamOptions | None, usage: Usage | None) -> bytes:
    if not usage or not options or not options.include_usage:
        return DONE
    return f'data: {chunk}, "choices": []{_told(usage, options)}}}\n\n'.encode() + DONE


def _told(usage: Usage | None, options: StreamOptions | None) -> str:
    """The field of a chunk that tells the usage; null where a chunk of its own will tell it."""
    if usage:
        return f', "usage": {json.dumps(usage_object(usage))}'
    return ', "usage": null' if options and options.include_usage else ""


def _call_delta(index: int, call_id: str | None, name: str | None, text: str) -> dict[str, Any]:
    if name is None:
        return {"index": index, "function": {"arguments": text}}
    function = {"name": name, "arguments": text}
    return {"index": index, "id": call_id, "type": "function", "function": function}
