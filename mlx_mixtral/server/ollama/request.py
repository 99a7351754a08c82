"""What the routes of Ollama's API take, and the requests of OpenAI's that it comes to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from mlx_mixtral.server.schema import (
    MOST_INPUTS,
    MOST_MESSAGES,
    MOST_TOOLS,
    NO_EFFECT,
    ChatRequest,
    CompletionRequest,
    Off,
    Stop,
    Strict,
    Tool,
)

_LOADING = f"{NO_EFFECT} The model is loaded already."


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Some clients know no integers.
Whole = Annotated[int, BeforeValidator(_whole)]


class OllamaOptions(Strict):
    """Settings of an answer. Those of how a model is loaded come too late."""

    num_predict: Whole | None = Field(None, ge=-2, description="Longest answer; -1, -2: no limit.")
    temperature: float | None = Field(None, ge=0, le=2)
    top_k: Whole | None = Field(None, ge=0, description="0: off.")
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: Whole | None = Field(None, ge=-1, le=2**63 - 1, description="-1: any.")
    stop: Stop | list[Stop] | None = None
    repeat_penalty: float | None = Field(None, ge=0.01, le=10, description="1: off.")
    repeat_last_n: Whole | None = Field(
        None, ge=-1, description="Tokens that it looks back; -1: all, 0: off."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    typical_p: float | None = Field(None, ge=1, le=1)
    tfs_z: float | None = Field(None, ge=1, le=1)
    mirostat: Literal[0] | None = None
    mirostat_tau: float | None = Field(None, description=NO_EFFECT)
    mirostat_eta: float | None = Field(None, description=NO_EFFECT)
    penalize_newline: bool | None = Field(None, description=NO_EFFECT)
    num_keep: Whole | None = Field(None, description=NO_EFFECT)
    num_ctx: Whole | None = Field(None, description=_LOADING)
    num_batch: Whole | None = Field(None, description=_LOADING)
    num_gpu: Whole | None = Field(None, description=_LOADING)
    main_gpu: Whole | None = Field(None, description=_LOADING)
    num_thread: Whole | None = Field(None, description=_LOADING)
    numa: bool | None = Field(None, description=_LOADING)
    low_vram: bool | None = Field(None, description=_LOADING)
    f16_kv: bool | None = Field(None, description=_LOADING)
    use_mmap: bool | None = Field(None, description=_LOADING)
    use_mlock: bool | None = Field(None, description=_LOADING)

    def sampling(self) -> dict[str, Any]:
        """The settings under OpenAI's names and ours."""
        endless = self.num_predict is not None and self.num_predict < 0
        back = self.repeat_last_n
        return {
            "max_tokens": None if endless else self.num_predict,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "seed": self.seed,
            "stop": self.stop,
            "repetition_penalty": 1.0 if back == 0 else self.repeat_penalty,
            "repetition_window": None if not back else 2**31 - 1 if back < 0 else back,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }


class OllamaRequest(Strict):
    """A request to the loaded model."""

    model: str = Field(
        max_length=256, description="Name or alias of the loaded model, with any :tag."
    )
    options: OllamaOptions | None = None
    keep_alive: float | str | None = Field(None, description=_LOADING)


class OllamaAnswering(OllamaRequest):
    """What requests for answers may say."""

    stream: bool | None = Field(None, description="On unless it is false.")
    format: Literal["", "json"] | dict[str, Any] | None = Field(
        None,
        description='"json", or a JSON schema that the answer keeps to. What of it cannot be kept '
        "to is left out.",
    )
    think: Off | None = None
    truncate: bool | None = Field(
        None, description=f"{NO_EFFECT} What is longer than the context is refused."
    )
    shift: bool | None = Field(
        None, description=f"{NO_EFFECT} An answer ends where the context does."
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @field_validator("think", mode="before")
    @classmethod
    def _no_thoughts(cls, given: Any) -> Any:
        if given is not None and given is not False:
            raise ValueError("the model does not support thinking")
        return given

    @property
    def streams(self) -> bool:
        """Whether the answer is to come line by line."""
        return self.stream is not False

    def _asked(self) -> dict[str, Any]:
        options = self.options or OllamaOptions.model_validate({})
        return options.sampling() | {"stream": self.streams}

    def _as_chat(self, messages: list[dict[str, Any]], tools: list[Tool] | None) -> ChatRequest:
        asked = {
            "messages": messages,
            "tools": tools,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "response_format": self._response_format(),
        }
        try:
            return ChatRequest.model_validate(self._asked() | asked)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None

    def _response_format(self) -> dict[str, Any] | None:
        if isinstance(self.format, dict):
            named = {"schema": self.format, "strict": False}
            return {"type": "json_schema", "json_schema": named}
        return {"type": "json_object"} if self.format == "json" else None


class CalledOllamaFunction(Strict):
    name: str
    arguments: dict[str, Any]
    index: int | None = Field(None, description=NO_EFFECT)


class OllamaCall(Strict):
    """A call that the assistant made."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledOllamaFunction
    index: int | None = Field(None, description=NO_EFFECT)


class OllamaMessage(Strict):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[OllamaCall] | None = Field(None, max_length=MOST_TOOLS)
    tool_name: str | None = Field(None, description="Of the function, in a tool's message.")
    name: str | None = Field(None, description="In a tool's message the same as tool_name.")
    tool_call_id: str | None = None
    images: list[str] | None = Field(None, max_length=0)
    thinking: str | None = Field(None, description=f"Of another model. {NO_EFFECT}")


class OllamaChatRequest(OllamaAnswering):
    """``POST /api/chat``"""

    messages: list[OllamaMessage] | None = Field(
        None, max_length=MOST_MESSAGES, description="None: nothing happens."
    )
    tools: list[Tool] | None = Field(None, max_length=MOST_TOOLS)

    def as_chat(self) -> ChatRequest:
        """The same in OpenAI's form. Raises RequestValidationError."""
        messages: list[dict[str, Any]] = []
        awaited: list[tuple[str, str]] = []  # ids and names of calls whose results are to come
        for message in self.messages or ():
            turn: dict[str, Any] = {"role": message.role, "content": message.content}
            if message.tool_calls:
                turn["tool_calls"] = [
                    _as_call(call, f"call{len(messages):03}{n:02}")
                    for n, call in enumerate(message.tool_calls)
                ]
                turn["content"] = message.content or None
                awaited = [(call["id"], call["function"]["name"]) for call in turn["tool_calls"]]
            elif message.role == "tool":
                turn |= _of_call(message, awaited)
            messages.append(turn)
        return self._as_chat(messages, self.tools)


def _as_call(call: OllamaCall, call_id: str) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id or call_id, "type": "function", "function": function}


def _of_call(message: OllamaMessage, awaited: list[tuple[str, str]]) -> dict[str, Any]:
    """Which call a result belongs to: that of its id, or the first one of its name, or the first.

    Ollama's clients tell no ids.
    """
    name = message.tool_name or message.name
    named = [call for call in awaited if call[0] == message.tool_call_id]
    named = named or [call for call in awaited if call[1] == name] or awaited
    if not named:
        return {"tool_call_id": message.tool_call_id, "name": name}
    call = named[0]
    awaited.remove(call)
    return {"tool_call_id": call[0], "name": call[1]}


class OllamaGenerateRequest(OllamaAnswering):
    """``POST /api/generate``"""

    prompt: str | None = Field(None, description="Empty: nothing happens.")
    system: str | None = None
    raw: bool | None = Field(None, description="Continue the prompt as it is.")
    suffix: Literal[""] | None = None
    template: Literal[""] | None = None
    context: list[int] | None = Field(None, max_length=0)
    images: list[str] | None = Field(None, max_length=0)

    @model_validator(mode="after")
    def _check_raw(self) -> OllamaGenerateRequest:
        if self.raw and (self.system or self.format):
            raise ValueError("system and format do not go with raw")
        return self

    def as_request(self) -> ChatRequest | CompletionRequest:
        """The same in OpenAI's form. Raises RequestValidationError."""
        if not self.raw:
            system = [{"role": "system", "content": self.system}] if self.system else []
            return self._as_chat([*system, {"role": "user", "content": self.prompt}], None)
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        asked = self._asked() | {"prompt": self.prompt, "logprobs": logprobs}
        return CompletionRequest.model_validate(asked)


class OllamaEmbedRequest(OllamaRequest):
    """``POST /api/embed``"""

    input: str | Annotated[list[str], Field(max_length=MOST_INPUTS)]
    truncate: bool | None = Field(None, description="Cut what is longer than the context.")
    dimensions: None = None


class OllamaEmbeddingsRequest(OllamaRequest):
    """``POST /api/embeddings``, the older route"""

    prompt: str


class OllamaShowRequest(Strict):
    """``POST /api/show``"""

    model: str | None = Field(None, max_length=256)
    name: str | None = Field(None, max_length=256, description="The older name of model.")
    verbose: bool | None = Field(None, description=NO_EFFECT)
