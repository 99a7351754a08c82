"""What ``POST /v1/responses`` takes, and the conversation that it comes to.

Nothing is kept from one request to the next, so every request brings its whole conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from mlx_mixtral.server.schema import (
    MOST_MESSAGES,
    MOST_TOOLS,
    NO_EFFECT,
    OF_CLIENTS,
    AnyObjectFormat,
    ChatRequest,
    Function,
    NamedSchema,
    Off,
    Sampled,
    Strict,
    TextFormat,
)

LOGPROBS = "message.output_text.logprobs"


class TextItem(Strict):
    """A part of a message; there are no others than text."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = Field(None, description=NO_EFFECT)
    logprobs: list[Any] | None = Field(None, description=NO_EFFECT)
    parsed: Any = Field(None, description=OF_CLIENTS)


class _Item(Strict):
    id: str | None = Field(None, description=NO_EFFECT)
    status: Literal["in_progress", "completed", "incomplete"] | None = Field(
        None, description=NO_EFFECT
    )


class MessageItem(_Item):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextItem]
    phase: Literal["commentary", "final_answer"] | None = Field(None, description=NO_EFFECT)


class CallItem(_Item):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    parsed_arguments: Any = Field(None, description=OF_CLIENTS)


class ResultItem(_Item):
    """What a called function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[TextItem]


class ReasoningItem(_Item):
    """Another model's reasoning. It is left out of the conversation."""

    type: Literal["reasoning"]
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: str | None = None


def _kind(item: Any) -> str:
    given = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    others = ("function_call", "function_call_output", "reasoning")
    return f"[{given}]" if given in others else "[message]"


# Brackets, since what names an alternative is no field (see ``validation.py``).
Item = Annotated[
    Annotated[MessageItem, Tag("[message]")]
    | Annotated[CallItem, Tag("[function_call]")]
    | Annotated[ResultItem, Tag("[function_call_output]")]
    | Annotated[ReasoningItem, Tag("[reasoning]")],
    Discriminator(_kind),
]


class FunctionItem(Function):
    """A function that may be called. There are no other tools."""

    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def _functions_alone(cls, given: Any) -> Any:
        kind = given.get("type") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise ValueError(
                f"there is no {kind[:40]!r} here, functions alone: switch it off in the client "
                '(in Codex: web_search = "disabled", and [agents] enabled = false)'
            )
        return given


class ChosenFunction(Strict):
    """The function that has to be called."""

    type: Literal["function"]
    name: str


class SchemaText(NamedSchema):
    """The answer is JSON that keeps to a schema."""

    type: Literal["json_schema"]


class TextSettings(Strict):
    """The form of the answer."""

    format: TextFormat | AnyObjectFormat | SchemaText | None = Field(None, discriminator="type")
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description=NO_EFFECT)


class Reasoning(Strict):
    """What reasoning models do with it. This one does not reason."""

    effort: str | None = Field(None, max_length=16, description=NO_EFFECT)
    summary: str | None = Field(None, max_length=16, description=NO_EFFECT)


class ResponsesStreamOptions(Strict):
    """How to stream."""

    include_obfuscation: bool = Field(False, description=NO_EFFECT)


class ResponsesRequest(Sampled):
    """``POST /v1/responses``. Nothing is kept: every request brings its whole conversation."""

    input: str | Annotated[list[Item], Field(min_length=1, max_length=MOST_MESSAGES)]
    instructions: str | None = Field(None, description="A system message before the others.")
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextSettings | None = None
    tools: list[FunctionItem] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = Field(None, description="False: one call at most.")
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        Field(None, max_length=2, description=f"Of reasoning: {NO_EFFECT}")
    )
    stream_options: ResponsesStreamOptions | None = None
    store: bool | None = Field(None, description=f"{NO_EFFECT} Nothing is kept.")
    reasoning: Reasoning | None = None
    metadata: dict[str, Any] | None = Field(None, description="Comes back with the answer.")
    client_metadata: dict[str, Any] | None = Field(None, description=NO_EFFECT)
    prompt_cache_key: str | None = Field(None, description=NO_EFFECT)
    prompt_cache_retention: Literal["in_memory", "24h"] | None = Field(None, description=NO_EFFECT)
    safety_identifier: str | None = Field(None, description=NO_EFFECT)
    service_tier: Literal["auto", "default"] | None = Field(None, description=NO_EFFECT)
    truncation: Literal["disabled"] | None = None
    previous_response_id: None = None
    conversation: None = None
    background: Off | None = None
    max_tool_calls: None = None
    prompt: None = None

    @field_validator("previous_response_id", "conversation", mode="before")
    @classmethod
    def _nothing_is_kept(cls, given: Any) -> Any:
        if given is not None:
            raise ValueError("nothing is kept here: send the whole conversation as input")
        return given

    @property
    def tells_logprobs(self) -> bool:
        """Whether the log-probabilities of the answer's tokens are asked for."""
        return self.top_logprobs is not None or LOGPROBS in (self.include or ())

    def as_chat(self) -> ChatRequest:
        """The same as a request for a chat.

        Raises:
            RequestValidationError: as for such a request.
        """
        format_ = self.text.format if self.text else None
        chosen = self.tool_choice
        asked = {
            **{name: getattr(self, name) for name in Sampled.model_fields},
            "messages": self._messages(),
            "max_tokens": self.max_output_tokens,
            "response_format": _as_response_format(format_),
            "tools": [_as_tool(tool) for tool in self.tools] if self.tools else None,
            "tool_choice": {"type": "function", "function": {"name": chosen.name}}
            if isinstance(chosen, ChosenFunction)
            else chosen,
            "parallel_tool_calls": self.parallel_tool_calls,
            "logprobs": self.tells_logprobs,
            "top_logprobs": self.top_logprobs,
        }
        try:
            return ChatRequest.model_validate(asked)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for item in self.input:
            if isinstance(item, CallItem):
                _assistant(messages)["tool_calls"].append(_as_call(item))
            elif isinstance(item, ResultItem):
                content = _text(item.output)
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
            elif isinstance(item, MessageItem):
                messages.append({"role": item.role, "content": _text(item.content)})
        return messages


def _assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message that one more call belongs to."""
    if not messages or "tool_calls" not in messages[-1]:
        before = messages.pop() if messages and messages[-1]["role"] == "assistant" else {}
        messages.append({"role": "assistant", "content": None, **before, "tool_calls": []})
    return messages[-1]


def _as_call(item: CallItem) -> dict[str, Any]:
    function = {"name": item.name, "arguments": item.arguments}
    return {"id": item.call_id, "type": "function", "function": function}


def _as_tool(tool: FunctionItem) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"})}


def _as_response_format(format_: Strict | None) -> dict[str, Any] | None:
    if isinstance(format_, SchemaText):
        schema = format_.model_dump(exclude={"type"}, by_alias=True)
        return {"type": "json_schema", "json_schema": schema}
    return format_.model_dump() if format_ else None


def _text(content: str | Sequence[TextItem]) -> str:
    return content if isinstance(content, str) else "\n\n".join(part.text for part in content)
