"""The answers of Ollama's API: an object, or one a line while they come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from mlx_mixtral.server.answers import Answer, Part, Usage
from mlx_mixtral.server.failure import json_bytes, refusal_of
from mlx_mixtral.server.jobs import Done, TokenInfo
from mlx_mixtral.server.replies import logprob_objects
from mlx_mixtral.tokenizer import Tokenizer


class OllamaReply:
    """One answer to ``POST /api/chat`` or ``/api/generate``."""

    def __init__(self, model: str, tokenizer: Tokenizer, chat: bool, logprobs: bool) -> None:
        """``chat``: the answer is a message; else a text."""
        self._model, self._tokenizer = model, tokenizer
        self._chat, self._logprobs = chat, logprobs
        self._begun = perf_counter()
        self._answer = Answer()

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        """The answer at once."""
        (answer,) = answers
        return self._line(answer.text, answer.tokens, answer.calls) | self._end_of(answer)

    def first(self, index: int) -> None:
        """Nothing opens an answer."""

    def chunk(self, index: int, part: Part, usage: Usage | None) -> bytes | None:
        """More text; calls when they are whole."""
        self._answer.add(part)
        calls = self._answer.calls if part.done else []
        if not (part.text or calls or (self._logprobs and part.tokens)):
            return None
        return _framed(self._line(part.text, part.tokens, calls) | {"done": False})

    def end(self, usage: Usage | None) -> bytes:
        """What the answer took."""
        return _framed(self._line("", (), ()) | self._end_of(self._answer))

    def idle(self) -> bytes:
        """A line that says nothing, so that nobody gives up."""
        return _framed(self._line("", (), ()) | {"done": False})

    def failed(self, error: Exception) -> bytes:
        """A line with the error."""
        return _framed({"error": str(refusal_of(error))})

    def nothing(self) -> dict[str, Any]:
        """What is told where nothing was asked: the model is loaded."""
        return self._line("", (), ()) | {"done": True, "done_reason": "load"}

    def _line(
        self, text: str, tokens: Sequence[TokenInfo], calls: Sequence[Mapping[str, str]]
    ) -> dict[str, Any]:
        line: dict[str, Any] = {"model": self._model, "created_at": _now()}
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if calls:
                message["tool_calls"] = [_call(n, call) for n, call in enumerate(calls)]
            line["message"] = message
        else:
            line["response"] = text
        if self._logprobs and tokens:
            line["logprobs"] = logprob_objects(tokens, self._tokenizer)
        return line

    def _end_of(self, answer: Answer) -> dict[str, Any]:
        done = answer.done or Done("stop")
        total = perf_counter() - self._begun
        return {
            "done": True,
            "done_reason": "length" if answer.reason == "length" else "stop",
            "total_duration": _ns(total),
            "load_duration": 0,
            "prompt_eval_count": done.prompt_tokens,
            "prompt_eval_duration": _ns(max(0.0, done.first_s - done.waited_s)),
            "eval_count": done.completion_tokens,
            "eval_duration": _ns(max(0.0, total - done.first_s)),
        }


def _call(index: int, call: Mapping[str, str]) -> dict[str, Any]:
    try:
        arguments = json.loads(call["arguments"])
    except ValueError:  # it was cut
        arguments = {}
    function = {"index": index, "name": call["name"], "arguments": arguments}
    return {"id": call["id"], "function": function}


def _framed(line: Mapping[str, Any]) -> bytes:
    return json_bytes(line) + b"\n"


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
