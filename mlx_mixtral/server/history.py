"""Conversations as clients send them, made such that the model's form has a place for them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_mixtral.errors import UsageError
from mlx_mixtral.server.tools import LETTERS, MARK
from mlx_mixtral.template.messages import json_value

Turn = Mapping[str, Any]
_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")


def tidied(messages: Sequence[Turn], hoists: bool) -> list[Turn]:
    """Without empty messages of the assistant; texts of the system at the front if it ``hoists``.

    Clients send back whatever they got, nothing at all too. Mistral's own forms put all texts of
    the system in one place, wherever they stand, but know only some places for them to stand.
    """
    turns = [turn for turn in messages if turn["role"] != "assistant" or _says_anything(turn)]
    if messages[-1].get("tool_calls"):
        raise UsageError("the last message is a call of the assistant's: add its result")
    if not hoists:
        return turns
    is_system = [turn["role"] in ("system", "developer") for turn in turns]
    first = [turn for turn, system in zip(turns, is_system, strict=True) if system]
    return first + [turn for turn, system in zip(turns, is_system, strict=True) if not system]


def _says_anything(turn: Turn) -> bool:
    content = turn.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    return bool(content or turn.get("tool_calls"))


def in_native_form(messages: Sequence[Turn]) -> list[dict[str, Any]]:
    """Messages whose call ids have Mistral's form, and whose results name their function.

    A call whose result never came gets an empty one, and text beside a call is left out: the
    form has no place for either.
    """
    names: dict[str | None, str] = {}
    awaited: list[str | None] = []
    out: list[dict[str, Any]] = []
    for message in messages:
        turn = dict(message)
        if turn["role"] == "tool":
            turn.setdefault("name", names.get(turn.get("tool_call_id"), "function"))
            turn["tool_call_id"] = _short(turn.get("tool_call_id"))
            if turn["tool_call_id"] in awaited:
                awaited.remove(turn["tool_call_id"])
        else:
            out += _nothing_for(awaited)
            awaited = []
        if calls := turn.get("tool_calls"):
            names |= {call.get("id"): call["function"]["name"] for call in calls}
            turn["tool_calls"] = [{**call, "id": _short(call.get("id"))} for call in calls]
            turn["content"] = None
            awaited = [call["id"] for call in turn["tool_calls"]]
        out.append(turn)
    return out + _nothing_for(awaited)


def _nothing_for(calls: Sequence[str | None]) -> list[dict[str, Any]]:
    return [{"role": "tool", "tool_call_id": call_id, "content": ""} for call_id in calls]


def _short(call_id: str | None) -> str | None:
    if call_id is None or _CALL_ID.fullmatch(call_id):
        return call_id
    digest = hashlib.sha256(call_id.encode("utf-8", "replace")).digest()
    return "".join(LETTERS[byte % len(LETTERS)] for byte in digest[:9])


def in_plain_text(
    messages: Sequence[Turn], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Messages for a template that knows no tools: functions, calls and results in words."""
    names: dict[str | None, str] = {}
    out: list[dict[str, Any]] = []
    if tools:
        out.append({"role": "system", "content": _told(tools)})
    for message in messages:
        turn = {key: value for key, value in message.items() if key != "tool_calls"}
        if calls := message.get("tool_calls"):
            names |= {call.get("id"): call["function"]["name"] for call in calls}
            said = f"{MARK} {json.dumps([_shown(call) for call in calls], ensure_ascii=False)}"
            before = message.get("content")
            turn["content"] = f"{before}\n{said}" if isinstance(before, str) and before else said
        if turn["role"] == "tool":
            call_id = turn.pop("tool_call_id", None)
            name = turn.pop("name", None) or names.get(call_id, "the function")
            turn = {"role": "user", "content": f"Result of {name}: {_plain(turn.get('content'))}"}
        out.append(turn)
    return out


def _told(tools: Sequence[Mapping[str, Any]]) -> str:
    functions = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    return (
        f"You can call these functions: {functions}\n"
        f"To call one or more, answer with {MARK} and a JSON list of calls and nothing else:\n"
        f'{MARK} [{{"name": "...", "arguments": {{...}}}}]\n'
        "Their results will follow. If no function is of use, answer in words."
    )


def _shown(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    if isinstance(arguments, str):
        arguments = json_value(arguments)
    return {"name": call["function"]["name"], "arguments": arguments}


def _plain(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n\n".join(part["text"] for part in content)
    raise UsageError('a tool message needs "content"')
