"""What replies of Ollama's API hold, for the API's description; see ``reply.py``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from mlx_mixtral.server.reply_schema import ChosenTokenReply


class OllamaError(BaseModel):
    """Every answer with a status of 400 or more, and a line that ends a stream."""

    error: str


class _Line(BaseModel):
    """Times are in nanoseconds; they and the counts come with the last line."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load"] | None = None
    logprobs: list[ChosenTokenReply] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class OllamaFunctionReply(BaseModel):
    index: int
    name: str
    arguments: dict[str, Any]


class OllamaCallReply(BaseModel):
    id: str
    function: OllamaFunctionReply


class OllamaMessageReply(BaseModel):
    role: Literal["assistant"]
    content: str
    tool_calls: list[OllamaCallReply] | None = None


class OllamaChatReply(_Line):
    """An answer, or a line of it."""

    message: OllamaMessageReply


class OllamaGenerateReply(_Line):
    """An answer, or a line of it."""

    response: str


class OllamaEmbedReply(BaseModel):
    """A vector of length 1 for each text."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbeddingsReply(BaseModel):
    """The vector of a text."""

    embedding: list[float]


class OllamaDetails(BaseModel):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(BaseModel):
    """The loaded model."""

    name: str
    model: str
    size: int = Field(description="Bytes of its files.")
    digest: str
    details: OllamaDetails
    modified_at: str | None = None
    expires_at: str | None = None
    size_vram: int | None = None
    context_length: int | None = None


class OllamaModelsReply(BaseModel):
    """The models that there are, or that run: one."""

    models: list[OllamaModel]


class OllamaShowReply(BaseModel):
    """The model's details."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaVersionReply(BaseModel):
    """The version of Ollama whose API this is."""

    version: str
