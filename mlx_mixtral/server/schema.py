"""What requests may hold: the fields of OpenAI's and Mistral's APIs that mean something here.

A field that is not listed is refused, and so is a value of one that cannot be honoured. The
few that are taken without an effect say so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

# Of one request. They stand in the API's description.
MOST_MESSAGES = 2048
MOST_TOOLS = 128
MOST_STOPS = 16
MOST_ANSWERS = 16
MOST_BIASES = 1024
MOST_PROMPTS = 256
MOST_INPUTS = 2048
LONGEST_STOP = 256

NO_EFFECT = "Taken, without an effect."
OF_CLIENTS = f"Added by OpenAI's clients to what they read. {NO_EFFECT}"


def _refuse_true(value: bool) -> bool:
    if value:
        raise ValueError("true is not offered here")
    return value


# A Literal would take 0.0 as well.
Off = Annotated[
    bool, AfterValidator(_refuse_true), WithJsonSchema({"type": "boolean", "const": False})
]


def _null_says_nothing(schema: dict[str, Any]) -> None:
    """Told of in the description: fields that may be left out may be null, and unknown ones."""
    schema["additionalProperties"] = {"type": "null"}
    for name, about in schema.get("properties", {}).items():
        if about.get("default") is not None:
            told = {
                key: about.pop(key) for key in ("title", "default", "description") if key in about
            }
            schema["properties"][name] = {"anyOf": [about, {"type": "null"}], **told}


class Strict(BaseModel):
    """Nothing but the fields that are listed, of the types that are listed.

    Null says nothing, of a field that may be left out and of any that is unknown: clients send
    what they know as null.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=_null_says_nothing,
        strict=True,
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict) or None not in given.values():
            return given
        fields = cls.model_fields.items()
        needed = {n for name, field in fields if field.is_required() for n in (name, field.alias)}
        return {name: value for name, value in given.items() if value is not None or name in needed}


class TextPart(Strict):
    """A part of a message; there are no others than text."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = Field(None, description=NO_EFFECT)

    @field_validator("type", mode="before")
    @classmethod
    def _text_alone(cls, kind: Any) -> Any:
        if kind in ("image_url", "input_audio", "video_url", "file"):
            raise ValueError("the model reads text, no images, sounds or files")
        return kind


class CalledFunction(Strict):
    """A function that the assistant asked for."""

    name: str
    arguments: str | dict[str, Any] = Field(description="JSON text, or an object.")
    parsed_arguments: Any = Field(None, description=OF_CLIENTS)


class ToolCall(Strict):
    """A call that the assistant made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = Field(None, description=NO_EFFECT)


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = Field(None, description="Of the function, in a tool's message.")
    tool_calls: list[ToolCall] | None = Field(
        None,
        max_length=MOST_TOOLS,
        description="The forms of Mistral's own models have no place for content beside them: "
        "it is left out.",
    )
    tool_call_id: str | None = None
    prefix: bool = Field(
        False, description="The answer goes on with this last message (Mistral's API)."
    )
    refusal: str | None = Field(None, description=NO_EFFECT)
    parsed: Any = Field(None, description=OF_CLIENTS)
    reasoning_content: str | None = Field(None, description=f"Of another model. {NO_EFFECT}")
    annotations: list[Any] | None = Field(None, max_length=0)
    audio: None = None
    function_call: None = None

    @property
    def is_open(self) -> bool:
        """An answer goes on with it, if it is the last one."""
        return self.role == "assistant" and not self.tool_calls


class Function(Strict):
    """A function that may be called."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="A JSON schema of an object. Arguments always keep to it."
    )
    strict: bool | None = Field(
        None,
        description="True: a schema with anything that cannot be kept to is refused. Else that is "
        "left out.",
    )


class Tool(Strict):
    """Something that the model may use."""

    type: Literal["function"] = "function"
    function: Function


class FunctionName(Strict):
    name: str


class ChosenTool(Strict):
    """The function that has to be called."""

    type: Literal["function"] = "function"
    function: FunctionName


class TextFormat(Strict):
    type: Literal["text"]


class AnyObjectFormat(Strict):
    """The answer is a JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    name: str = Field("answer", max_length=64)
    description: str | None = Field(None, description=NO_EFFECT)
    json_schema: dict[str, Any] | bool = Field(
        alias="schema", description="Answers always keep to it."
    )
    strict: bool | None = Field(
        None,
        description="False: what cannot be kept to is left out. Else a schema with anything like "
        "that is refused.",
    )


class SchemaFormat(Strict):
    """The answer is JSON that keeps to a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | AnyObjectFormat | SchemaFormat, Field(discriminator="type")]


class Prediction(Strict):
    """What the answer is expected to say, for the most part."""

    type: Literal["content"]
    content: str | list[TextPart]


class StreamOptions(Strict):
    """How to stream."""

    include_usage: bool = Field(False, description="A last chunk without choices tells the usage.")
    include_obfuscation: bool = Field(False, description=NO_EFFECT)


Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
MostTokens = Annotated[
    Annotated[int, Field(ge=1)] | Literal[-1],
    Field(description="-1: as many as the context has room for."),
]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1)]


class Named(Strict):
    """A request to a model."""

    model: str | None = Field(
        None, max_length=256, description="Name or alias of the loaded model, which is the default."
    )
    user: str | None = Field(None, description=NO_EFFECT)


class Sampled(Named):
    """What every request for an answer may say about how to sample it."""

    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, description="0: off.")
    min_p: float | None = Field(None, ge=0, le=1, description="0: off.")
    repetition_penalty: float | None = Field(None, ge=0.01, le=10, description="1: off.")
    repeat_penalty: float | None = Field(
        None, ge=0.01, le=10, description="llama.cpp's name of repetition_penalty."
    )
    repetition_window: int | None = Field(
        None, ge=1, description="Tokens that the repetition_penalty looks back."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MOST_BIASES, description="Token ids, as text, to biases."
    )
    seed: int | None = Field(
        None, ge=-1, le=2**63 - 1, description="The same seed gives the same answer; -1: any."
    )
    random_seed: int | None = Field(None, ge=0, le=2**63 - 1, description="Mistral's name of seed.")
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None

    @model_validator(mode="after")
    def _check_names(self) -> Sampled:
        penalties = (self.repetition_penalty, self.repeat_penalty)
        if None not in (self.seed, self.random_seed) and self.seed != self.random_seed:
            raise ValueError("seed and random_seed differ: give one of them")
        if None not in penalties and penalties[0] != penalties[1]:
            raise ValueError("repetition_penalty and repeat_penalty differ: give one of them")
        return self


class Generating(Sampled):
    """What requests for one answer or several may say besides."""

    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MOST_ANSWERS, description="Answers to give.")
    max_tokens: MostTokens | None = None

    @model_validator(mode="after")
    def _check_options(self) -> Generating:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options only go with stream: true")
        return self


class ChatRequest(Generating):
    """``POST /v1/chat/completions``"""

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: MostTokens | None = Field(
        None, description="The newer name of max_tokens."
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    prediction: Prediction | None = Field(
        None, description="What of it the answer repeats comes sooner; no answer is changed by it."
    )
    tools: list[Tool] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required", "any"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = Field(None, description="False: one call at most.")
    continue_final_message: bool | None = Field(
        None,
        description="True demands that the last message is the assistant's. That is gone on with "
        "in any case; unlike with prefix, the answer does not repeat it.",
    )
    add_generation_prompt: bool | None = Field(
        None, description="False says the same as continue_final_message: true."
    )
    routing: bool = Field(
        False,
        description="Tell the experts that each layer chose for each token: choices[].routing "
        "is [tokens][layers][experts], the one that weighed most first.",
    )
    metadata: dict[str, Any] | None = Field(None, description=NO_EFFECT)
    safety_identifier: str | None = Field(None, description=NO_EFFECT)
    prompt_cache_key: str | None = Field(None, description=NO_EFFECT)
    service_tier: Literal["auto", "default"] | None = Field(None, description=NO_EFFECT)
    modalities: list[Literal["text"]] | None = None
    store: bool | None = Field(None, description=f"{NO_EFFECT} Nothing is kept.")
    reasoning_effort: str | None = Field(
        None, max_length=16, description=f"{NO_EFFECT} The model does not reason."
    )
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description=NO_EFFECT)
    safe_prompt: Off | None = None

    @model_validator(mode="after")
    def _check_together(self) -> ChatRequest:
        most = (self.max_tokens, self.max_completion_tokens)
        if None not in most and most[0] != most[1]:
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs only go with logprobs: true")
        if any(message.prefix for message in self.messages[:-1]):
            raise ValueError("prefix: only the last message can be gone on with")
        if self.messages[-1].prefix and self.messages[-1].role != "assistant":
            raise ValueError("prefix: only a message of the assistant can be gone on with")
        new = self.add_generation_prompt
        for goes_on in (self.continue_final_message, None if new is None else not new):
            if goes_on is True and not self.messages[-1].is_open:
                raise ValueError("continue_final_message: the last message is not the assistant's")
            if goes_on is False and self.messages[-1].is_open:
                raise ValueError("the last message is the assistant's: it can only be gone on with")
        return self


class CompletionRequest(Generating):
    """``POST /v1/completions``"""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str] | list[TokenIds], Field(min_length=1, max_length=MOST_PROMPTS)]
    ) = Field(description="Text or token ids, one or several. Text goes after <s>.")
    max_tokens: MostTokens | None = 16
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: Literal[1] | None = None
    echo: Off | None = None
    suffix: Literal[""] | None = None


class EmbeddingRequest(Named):
    """``POST /v1/embeddings``"""

    input: str | Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS)] = Field(
        description="One text or several. Each goes after <s>."
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, description="Of the model; there are no others.")
    output_dimension: int | None = Field(None, description="Mistral's name of dimensions.")
    output_dtype: Literal["float"] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _no_ids(cls, given: Any) -> Any:
        first = given[0] if isinstance(given, list) and given else None
        if isinstance(first, int | list):
            raise ValueError(
                "token ids are not taken, as clients send those of OpenAI's vocabularies: send "
                "text (in LangChain with check_embedding_ctx_length=False)"
            )
        return given


class TokenizeRequest(Named):
    """``POST /v1/tokenize``: a text, or a conversation in the model's form."""

    text: str | None = None
    bos: bool = Field(False, description="Put <s> before a text.")
    messages: list[Message] | None = Field(None, min_length=1, max_length=MOST_MESSAGES)
    tools: list[Tool] | None = Field(None, max_length=MOST_TOOLS)

    @model_validator(mode="after")
    def _check_one(self) -> TokenizeRequest:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give either text or messages")
        if self.text is not None and self.tools:
            raise ValueError("tools only go with messages")
        return self


class DetokenizeRequest(Named):
    """``POST /v1/detokenize``"""

    tokens: list[Annotated[int, Field(ge=0, lt=1 << 31)]]
