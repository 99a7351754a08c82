"""Functions that a model may call: told to it, kept to by a grammar, read from its answer.

Models with Mistral's v2 and v3 forms were trained on them. Any other one is told of the
functions in the system text, and is held to the same form of a call by the grammar.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_mixtral.errors import UsageError
from mlx_mixtral.server.grammar import Grammars, json_rule
from mlx_mixtral.server.schema import ChatRequest, ChosenTool, Tool

MARK = "[TOOL_CALLS]"
TEXT_MARK = r"/ ?\[TOOL_CALLS\]/"
"""One lexeme, space included: a space by itself would be the beginning of any text."""
NATIVE = ("mistral-v2", "mistral-v3")
"""Names of the templates that have a form for tools."""
SINGLE = "mistral-v2"
"""The one that takes one result a turn."""
MOST_CALLS = 16
"""Calls at once: a small model may repeat itself for ever."""
LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Toolbox:
    """The functions of one request.

    Attributes:
        tools: in OpenAI's form; none where ``tool_choice`` forbids all.
        required: one of them has to be called.
        several: more than one call may be made at once.
        strict: names of those whose arguments have to keep to their schemas in every point. Of
            others' schemas, what cannot be kept to is left out.
    """

    tools: tuple[Mapping[str, Any], ...]
    required: bool
    several: bool
    strict: frozenset[str] = frozenset()

    @classmethod
    def of(cls, request: ChatRequest, single: bool = False) -> Toolbox:
        """Raises UsageError where ``tool_choice`` names none of them.

        Args:
            single: the model's form has no place for the results of several calls.
        """
        tools, choice = request.tools or [], request.tool_choice
        names = [tool.function.name for tool in tools]
        if len(set(names)) < len(names):
            raise UsageError("two tools have the same name")
        if choice == "none":
            tools = []
        elif isinstance(choice, ChosenTool):
            tools = [tool for tool in tools if tool.function.name == choice.function.name]
        required = choice in ("required", "any") or isinstance(choice, ChosenTool)
        if required and not tools:
            raise UsageError("tool_choice demands a call of a tool that is not among the tools")
        strict = frozenset(tool.function.name for tool in tools if tool.function.strict)
        several = request.parallel_tool_calls is not False and not single
        return cls(described(tools), required, several, strict)

    def grammar(self, mark: str, otherwise: str | None) -> str:
        """A call, or several, or else an answer.

        Args:
            mark: how Lark spells what calls begin with: ``TEXT_MARK``, or a control token.
            otherwise: a rule for an answer in JSON; None: any text that is no call.
        """
        functions = [tool["function"] for tool in self.tools]
        bodies = [
            f'f{n}: {_quoted(json.dumps(f["name"]), before=_HEAD)} a{n} "}}"\n'
            f"a{n}: {self._rule(f)}\n"
            for n, f in enumerate(functions)
        ]
        more = f' (", " call){{0,{MOST_CALLS - 1}}}' if self.several else ""
        start = f"{mark} SPACE? calls"
        if not self.required:
            start += " | SPACE? answer" if otherwise else " | TEXT"
        rules = [
            f"start: {start}",
            "SPACE: / /",
            f'calls: "[" call{more} "]"',
            "call: " + " | ".join(f"f{n}" for n in range(len(functions))),
            *bodies,
        ]
        if otherwise and not self.required:
            rules.append(f"answer: {otherwise}")
        elif not self.required:
            rules.append(r"TEXT: /(?s:.*)/ & ~/(?s: ?\[TOOL_CALLS\].*)/")
        return "\n".join(rules)

    def _rule(self, function: Mapping[str, Any]) -> str:
        return json_rule(_arguments(function), lenient=function["name"] not in self.strict)

    def check(self, grammars: Grammars) -> None:
        """Raises UsageError with the name of the first function whose schema cannot be kept to."""
        for function in (tool["function"] for tool in self.tools):
            try:
                grammars.compiled(f"start: {self._rule(function)}\n")
            except UsageError as error:
                raise UsageError(f"parameters of {function['name']}: {error}") from None


def described(tools: Sequence[Tool]) -> tuple[Mapping[str, Any], ...]:
    """Tools in OpenAI's form, as templates take them."""
    return tuple(
        tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools
    )


_HEAD = '{"name": '
_TAIL = ', "arguments": '
_BEGIN = re.compile(r'\s*[\[,]\s*\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')


def _quoted(name: str, before: str) -> str:
    return json.dumps(f"{before}{name}{_TAIL}")


def _arguments(function: Mapping[str, Any]) -> Mapping[str, Any]:
    schema: Mapping[str, Any] = function.get("parameters") or {}
    if schema.get("type", "object") != "object":
        raise UsageError(f"the parameters of {function['name']} have to be a schema of an object")
    if not schema:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **schema}


@dataclass(frozen=True)
class CallPart:
    """More of a call. ``name`` and ``id`` come with its first part only."""

    index: int
    arguments: str
    name: str | None = None
    id: str | None = None


class CallReader:
    """Reads calls as a grammar of ``Toolbox`` has them written, while they are written."""

    def __init__(self) -> None:
        self._text, self._index = "", -1
        self._inside = False
        self._depth, self._in_string, self._escaped = 0, False, False

    def push(self, text: str) -> list[CallPart]:
        """The parts that more text makes certain."""
        self._text += text
        parts: list[CallPart] = []
        while self._text:
            if self._inside:
                parts.append(CallPart(self._index, self._take_arguments()))
            elif begin := _BEGIN.match(self._text):
                self._index, self._inside = self._index + 1, True
                self._text = self._text[begin.end() :]
                parts.append(CallPart(self._index, "", json.loads(begin[1]), new_call_id()))
            elif self._text.startswith("}"):
                self._text = self._text[1:]
            else:
                break
        return parts

    def _take_arguments(self) -> str:
        """The text up to the brace that closes the object, or all of it."""
        for n, character in enumerate(self._text):
            if self._in_string:
                closing = character == '"' and not self._escaped
                self._escaped = character == "\\" and not self._escaped
                self._in_string = not closing
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self._inside = False
                    taken, self._text = self._text[: n + 1], self._text[n + 1 :]
                    return taken
        taken, self._text = self._text, ""
        return taken


def new_call_id() -> str:
    """Nine letters and digits, the form that Mistral's models know."""
    return "".join(secrets.choice(LETTERS) for _ in range(9))
