"""Mistral's ``[INST]`` form, versions v1 to v3, token for token as mistral-common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

from mlx_mixtral.errors import UsageError
from mlx_mixtral.template.base import Template
from mlx_mixtral.template.messages import (
    Message,
    ToolCall,
    json_text,
    json_value,
    read_messages,
    read_tools,
)
from mlx_mixtral.tokenizer import Tokenizer

_FOLLOWERS = {
    "system": ("user", "assistant", "system"),
    "user": ("assistant", "system", "user"),
    "assistant": ("assistant", "user", "tool"),
    "tool": ("assistant", "tool", "user"),
}
_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")


class MistralTemplate(Template):
    """The form of Mistral's own instruct models.

    In v1 the marks are plain text, the system text opens the first user turn, and there
    are no tools. In v2 and v3 the marks are control tokens, and system text and tools go
    with the last user turn. What mistral-common refuses when serving is refused here.
    Source: mistral-common, ``InstructTokenizerV1`` to ``V3``, ``InstructRequestNormalizer``
    and ``MistralRequestValidator``.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._version = tokenizer.version
        self.name = f"mistral-{tokenizer.version}"

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        turns, functions = read_messages(messages), read_tools(tools)
        is_open = not add_generation_prompt and turns[-1].role == "assistant"
        _check_order(turns, is_open)
        _check_assistant(turns)
        self._check_tools(turns, functions)
        system = _join(turn.text for turn in turns if turn.role == "system")
        turns = _merge(turns)
        users = [i for i, turn in enumerate(turns) if turn.role == "user"]
        host = users[0] if self._version == "v1" else users[-1]
        if system:
            turns[host] = replace(turns[host], text=f"{system}\n\n{turns[host].text}")
        ids = [self._tokenizer.bos_id]
        for i, turn in enumerate(turns):
            if functions and i == host:
                ids += self._block("AVAILABLE_TOOLS", json_text(functions))
            if not (self._version == "v2" and i < users[-1] and _uses_tools(turn)):
                ids += self._turn(turn)
        return ids[:-1] if is_open else ids

    def _turn(self, turn: Message) -> list[int]:
        encode, control_id = self._tokenizer.encode, self._tokenizer.control_id
        if turn.role == "user":
            if self._version == "v1":
                return encode(f"[INST] {turn.text} [/INST]")
            return self._block("INST", turn.text)
        if turn.role == "tool":
            return self._block("TOOL_RESULTS", json_text(self._tool_result(turn)))
        if turn.tool_calls:
            calls = json_text([self._tool_call(call) for call in turn.tool_calls])
            return [control_id("[TOOL_CALLS]"), *encode(calls), control_id("</s>")]
        text = turn.text if self._version == "v1" else turn.text.rstrip(" ")
        return [*encode(text), control_id("</s>")]

    def _block(self, mark: str, text: str) -> list[int]:
        control_id = self._tokenizer.control_id
        return [control_id(f"[{mark}]"), *self._tokenizer.encode(text), control_id(f"[/{mark}]")]

    def _tool_call(self, call: ToolCall) -> dict[str, Any]:
        shown = {"name": call.name, "arguments": call.arguments}
        return shown if self._version == "v2" else {**shown, "id": call.id}

    def _tool_result(self, turn: Message) -> object:
        content = json_value(turn.text)
        if self._version == "v2":
            return [{"name": turn.name, "content": content}]
        return {"content": content, "call_id": turn.tool_call_id}

    def _check_tools(self, turns: list[Message], functions: list[dict[str, Any]]) -> None:
        if self._version == "v1":
            if functions or any(map(_uses_tools, turns)):
                raise UsageError("this model (tokenizer v1) has no form for tools: leave them out")
            return
        _check_tool_counts(turns)
        if self._version == "v2":
            _check_single_results(turns)
            return
        ids = [call.id for turn in turns for call in turn.tool_calls]
        for call_id in ids + [turn.tool_call_id for turn in turns if turn.role == "tool"]:
            if call_id is None or not _CALL_ID.fullmatch(call_id):
                raise UsageError(f"bad tool call id {call_id!r}: use exactly 9 letters and digits")


def _check_order(turns: list[Message], is_open: bool) -> None:
    if len(turns) == 1 and turns[0].role not in ("user", "system"):
        raise UsageError("a conversation must start with a user or a system message")
    if turns[-1].role == "assistant" and not is_open:
        raise UsageError(
            "the last message is the assistant's: add a user message, "
            "or have it continued with add_generation_prompt=False"
        )
    for before, after in pairwise(turns):
        if after.role not in _FOLLOWERS[before.role]:
            raise UsageError(f"a {after.role} message cannot follow one of role {before.role}")


def _check_assistant(turns: list[Message]) -> None:
    for turn in turns:
        if turn.role == "assistant" and bool(turn.text) == bool(turn.tool_calls):
            raise UsageError("an assistant message must have either content or tool_calls")


def _check_tool_counts(turns: list[Message]) -> None:
    """Every call needs its result before the assistant speaks again."""
    open_calls = 0
    for turn in turns[1:]:
        if turn.role == "assistant" and open_calls == 0:
            open_calls = len(turn.tool_calls)
        elif turn.role == "assistant":
            break
        elif turn.role == "tool":
            open_calls -= 1
    if open_calls != 0:
        raise UsageError("every tool call must be answered by exactly one tool message")


def _check_single_results(turns: list[Message]) -> None:
    last_user = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=0)
    for before, after in pairwise(turns[last_user:]):
        if before.role == after.role == "tool":
            raise UsageError(
                "this model (tokenizer v2) takes one tool result a turn: call one tool"
            )


def _merge(turns: list[Message]) -> list[Message]:
    """Joins neighbours of one role and takes the system's out; a user always opens."""
    merged = []
    for role, group in groupby(turns, key=lambda turn: turn.role):
        same = list(group)
        if role == "tool":
            merged += same
        elif role != "system":
            calls = tuple(call for turn in same for call in turn.tool_calls)
            merged.append(Message(role, _join(turn.text for turn in same), calls))
    _check_assistant(merged)
    if not merged or merged[0].role != "user":
        merged.insert(0, Message("user", ""))
    return merged


def _uses_tools(turn: Message) -> bool:
    return turn.role == "tool" or bool(turn.tool_calls)


def _join(texts: Iterable[str]) -> str:
    return "\n\n".join(filter(None, texts))
