"""What replies hold, for the API's description; ``replies.py`` makes them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class CachedTokens(BaseModel):
    cached_tokens: int


class DraftedTokens(BaseModel):
    """What was drafted of the answers, of a prediction or of what they repeat."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int = Field(description="They are no part of an answer.")


class UsageReply(BaseModel):
    """Tokens of a request; a prompt counts once, however many answers it gets."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: DraftedTokens


class TokenReply(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenReply(TokenReply):
    top_logprobs: list[TokenReply]


class TokensReply(BaseModel):
    content: list[ChosenTokenReply]
    refusal: None = None


class CalledReply(BaseModel):
    name: str
    arguments: str = Field(description="A JSON object, as text.")


class CallReply(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledReply


class MessageReply(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[CallReply] | None = None


class ChatChoice(BaseModel):
    index: int
    message: MessageReply
    logprobs: TokensReply | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    routing: list[list[list[int]]] | None = Field(
        None, description="[tokens][layers][experts], where the request asks for it."
    )


class ChatCompletionReply(BaseModel):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply


class FunctionDelta(BaseModel):
    name: str | None = Field(None, description="In the first chunk of a call.")
    arguments: str


class CallDelta(BaseModel):
    """More of a call."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class MessageDelta(BaseModel):
    """More of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: MessageDelta
    logprobs: TokensReply | None = None
    routing: list[list[list[int]]] | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatChunk(BaseModel):
    """More of the answers to a conversation."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageReply | None = None


class TextTokensReply(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextTokensReply | None
    finish_reason: Literal["stop", "length"]


class TextCompletionReply(BaseModel):
    """Continuations of texts, all of the first prompt, then of the second."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageReply


class TextChunkChoice(BaseModel):
    index: int
    text: str
    logprobs: TextTokensReply | None
    finish_reason: Literal["stop", "length"] | None


class TextChunk(BaseModel):
    """More of the continuations of texts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChunkChoice]
    usage: UsageReply | None = None


class EmbeddingReply(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Numbers, or float32 in base64.")


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(BaseModel):
    """A vector for each text: the mean of the last hidden states of its tokens, of length 1."""

    id: str
    object: Literal["list"]
    model: str
    data: list[EmbeddingReply]
    usage: EmbeddingUsage


class Capabilities(BaseModel):
    completion_chat: bool
    completion_fim: bool
    function_calling: bool
    fine_tuning: bool
    vision: bool
    classification: bool


class ModelReply(BaseModel):
    """The loaded model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    name: str
    description: str
    family: str
    max_context_length: int
    layers: int
    experts: int
    aliases: list[str]
    default_model_temperature: float
    capabilities: Capabilities
    type: Literal["base"]


class ModelsReply(BaseModel):
    """The models that there are: one."""

    object: Literal["list"]
    data: list[ModelReply]


class TokenIdsReply(BaseModel):
    """Tokens of a text or a conversation."""

    tokens: list[int]
    count: int
    max_context_length: int


class TextReply(BaseModel):
    """The text of tokens."""

    text: str


class HealthReply(BaseModel):
    """What the server does now. ``status`` is "ok", "stopping" or "down"."""

    status: Literal["ok", "stopping", "down"]
    model: str
    running: int
    running_limit: int
    waiting: int
    waiting_limit: int
    kv_bytes: int
    kv_limit: int
