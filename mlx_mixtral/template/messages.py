"""Conversations in OpenAI's form, checked and made uniform for the templates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_mixtral.errors import UsageError

_ROLES = ("system", "user", "assistant", "tool")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True)
class ToolCall:
    """A function the assistant asked for; ``arguments`` is a JSON value."""

    name: str
    arguments: Any
    id: str | None


@dataclass(frozen=True)
class Message:
    """One message. ``text`` is empty when there is none."""

    role: str
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Checks a conversation's form (not the order of its roles, which templates judge).

    Content may be a string or a list of text parts; parts are joined by an empty line, as
    mistral-common does. Role ``developer`` is OpenAI's newer name of ``system``.

    Raises:
        UsageError: nothing in the list, or a message that cannot be read.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise UsageError('messages must be a list of {"role": ..., "content": ...} objects')
    if not messages:
        raise UsageError("the conversation is empty: give at least one message")
    return [_read_message(message) for message in messages]


def read_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Tool definitions with exactly the keys, in the order, that Mistral's models know.

    Raises:
        UsageError: an entry that is not ``{"type": "function", "function": {...}}``.
    """
    if tools is not None and (isinstance(tools, str) or not isinstance(tools, Sequence)):
        raise UsageError("tools must be a list of function definitions")
    return [_read_tool(tool) for tool in tools or ()]


def json_value(text: str) -> Any:
    """``text`` parsed as JSON, or itself where it is none; nothing at all is ``{}``."""
    if not text:
        return {}
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def json_text(value: object) -> str:
    """``value`` as JSON the way Mistral's models saw it: spaces after , and :, no escapes."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"tools and tool calls must be plain JSON data: {error}") from error


def _read_message(message: Mapping[str, Any]) -> Message:
    if not isinstance(message, Mapping):
        raise UsageError('every message must be a {"role": ..., "content": ...} object')
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in _ROLES:
        raise UsageError(f"unknown role {role!r}: use one of {', '.join(_ROLES)}")
    calls = message.get("tool_calls") or ()
    if calls and role != "assistant":
        raise UsageError(f"a {role} message cannot have tool_calls: only the assistant's can")
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise UsageError("tool_calls must be a list")
    content = message.get("content")
    if content is None and role != "assistant":
        raise UsageError(f'a {role} message needs "content"')
    call_id = message.get("tool_call_id")
    if call_id is not None and not isinstance(call_id, str):
        raise UsageError("tool_call_id must be a string")
    name = message.get("name") if role == "tool" else None
    if name is not None:
        _check_name(name)
    tool_calls = tuple(_read_tool_call(call) for call in calls)
    return Message(role, _text(content), tool_calls, call_id, name)


def _text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise UsageError("content must be a string or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise UsageError(f"content part {kind!r} is not supported: these models read text only")
        texts.append(part["text"])
    return "\n\n".join(filter(None, texts))


def _read_tool_call(call: object) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise UsageError('a tool call must be {"id": ..., "function": {"name", "arguments"}}')
    _check_name(function.get("name"))
    arguments = function.get("arguments")
    if not isinstance(arguments, str | Mapping | None):
        raise UsageError("the arguments of a tool call must be JSON text or an object")
    call_id = call.get("id")
    if call_id is not None and not isinstance(call_id, str):
        raise UsageError("the id of a tool call must be a string")
    value = json_value(arguments or "") if not isinstance(arguments, Mapping) else arguments
    return ToolCall(function["name"], value, call_id)


def _read_tool(tool: object) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(tool, Mapping) or not isinstance(function, Mapping):
        raise UsageError('a tool must be {"type": "function", "function": {"name", "parameters"}}')
    if tool.get("type", "function") != "function":
        raise UsageError(f"unknown tool type {tool['type']!r}: only functions can be offered")
    _check_name(function.get("name"))
    description, parameters = function.get("description"), function.get("parameters")
    if not isinstance(description, str | None) or not isinstance(parameters, Mapping | None):
        raise UsageError(
            f"tool {function['name']}: description must be text, parameters a JSON schema"
        )
    return {
        "type": "function",
        "function": {
            "name": function["name"],
            "description": description or "",
            "parameters": dict(parameters or {}),
        },
    }


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"bad function name {name!r}: use up to 64 letters, digits, underscores and dashes"
        )
