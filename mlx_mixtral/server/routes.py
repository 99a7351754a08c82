"""The routes of the API."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from mlx_mixtral.server.description import events_of
from mlx_mixtral.server.embedding import encoded, unit_vectors
from mlx_mixtral.server.failure import ErrorReply, Refusal
from mlx_mixtral.server.metrics import KIND, Metrics
from mlx_mixtral.server.reply_schema import (
    ChatChunk,
    ChatCompletionReply,
    EmbeddingsReply,
    HealthReply,
    ModelReply,
    ModelsReply,
    TextChunk,
    TextCompletionReply,
    TextReply,
    TokenIdsReply,
)
from mlx_mixtral.server.responses.described import EVENTS, ResponseObject
from mlx_mixtral.server.responses.request import ResponsesRequest
from mlx_mixtral.server.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from mlx_mixtral.server.service import JSONReply, Service
from mlx_mixtral.server.tools import described


def _answers(model: type[BaseModel], *events: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """How a reply that may be streamed is described."""
    if len(events) == 1:
        stream = events_of(*events, ErrorReply, end="[DONE]")
    else:
        stream = events_of(*events, end="")
    return {200: {"model": model, "content": {"text/event-stream": stream}}}


def answer_routes(service: Service) -> APIRouter:
    """Where answers are asked for."""
    routes = APIRouter(tags=["answers"])

    @routes.post("/v1/chat/completions", responses=_answers(ChatCompletionReply, ChatChunk))
    async def chat_completions(request: Request, asked: ChatRequest) -> Response:
        """Answer a conversation."""
        return await service.chat(request, asked)

    @routes.post("/v1/responses", responses=_answers(ResponseObject, *EVENTS))
    async def responses(request: Request, asked: ResponsesRequest) -> Response:
        """Answer a conversation, in OpenAI's newer form."""
        return await service.respond(request, asked)

    @routes.post("/v1/completions", responses=_answers(TextCompletionReply, TextChunk))
    async def completions(request: Request, asked: CompletionRequest) -> Response:
        """Continue a text, without the model's form for chats."""
        return await service.complete(request, asked)

    return routes


def text_routes(service: Service) -> APIRouter:
    """Where texts become numbers, and the other way round."""
    routes = APIRouter(tags=["texts"])

    @routes.post("/v1/embeddings", responses={200: {"model": EmbeddingsReply}})
    async def embeddings(request: Request, asked: EmbeddingRequest) -> Response:
        """Vectors of texts: means of the model's last hidden states, of length 1.

        The model was not trained for this. They tell alike texts from others, and that is all.
        """
        service.model.check(asked.model)
        size = service.lm.config.hidden_size
        for name in ("dimensions", "output_dimension"):
            if getattr(asked, name) not in (None, size):
                told = f"the model's vectors have {size} dimensions; ask for these, or for none"
                raise Refusal(400, told, code="invalid_value", param=name)
        prompts = await asyncio.to_thread(service.planner.texts, asked.input)
        vectors = unit_vectors(await service.embedded(request, prompts))
        base_64 = asked.encoding_format == "base64"
        count = sum(map(len, prompts))
        return JSONReply(
            {
                "id": f"embd-{secrets.token_hex(12)}",
                "object": "list",
                "model": service.model.id,
                "data": [
                    {"object": "embedding", "index": n, "embedding": encoded(vector, base_64)}
                    for n, vector in enumerate(vectors)
                ],
                "usage": {"prompt_tokens": count, "total_tokens": count},
            }
        )

    @routes.post("/v1/tokenize", responses={200: {"model": TokenIdsReply}})
    async def tokenize(asked: TokenizeRequest) -> Response:
        """The tokens of a text, or of a conversation in the model's form."""
        service.model.check(asked.model)
        ids = await asyncio.to_thread(_tokens, service, asked)
        context = service.model.context
        return JSONReply({"tokens": ids, "count": len(ids), "max_context_length": context})

    @routes.post("/v1/detokenize", responses={200: {"model": TextReply}})
    async def detokenize(asked: DetokenizeRequest) -> Response:
        """The text of tokens. Control tokens have none."""
        service.model.check(asked.model)
        vocabulary = service.lm.config.vocab_size
        if wrong := [token for token in asked.tokens if token >= vocabulary]:
            told = f"token {wrong[0]} is outside the vocabulary of {vocabulary}"
            raise Refusal(400, told, code="invalid_value", param="tokens")
        text = await asyncio.to_thread(service.lm.tokenizer.decode, asked.tokens)
        return JSONReply({"text": text})

    return routes


def state_routes(service: Service, metrics: Metrics) -> APIRouter:
    """Where the server tells of itself."""
    routes = APIRouter(tags=["state"])

    @routes.get("/v1/models", responses={200: {"model": ModelsReply}})
    async def models() -> Response:
        """The loaded model, in a list."""
        return JSONReply({"object": "list", "data": [service.model.card]})

    @routes.get("/v1/models/{name:path}", responses={200: {"model": ModelReply}})
    async def model(name: str) -> Response:
        """The loaded model, by its name or an alias."""
        service.model.check(name)
        return JSONReply(service.model.card)

    @routes.get("/health", responses={200: {"model": HealthReply}, 503: {"model": HealthReply}})
    async def health() -> Response:
        """Whether the server works; 503 where its engine does not run."""
        told = _health(service)
        return JSONReply(told, 503 if told["status"] == "down" else 200)

    @routes.get("/ready", responses={200: {"model": HealthReply}, 503: {"model": HealthReply}})
    async def ready() -> Response:
        """Whether requests are taken; 503 while the server stops."""
        told = _health(service)
        return JSONReply(told, 200 if told["status"] == "ok" else 503)

    @routes.get(
        "/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    )
    async def figures() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), headers={"content-type": KIND})

    return routes


def _tokens(service: Service, asked: TokenizeRequest) -> list[int]:
    if asked.messages is not None:
        return service.planner.conversation(asked.messages, described(asked.tools or []))
    return service.lm.tokenizer.encode(asked.text or "", bos=asked.bos)


def _health(service: Service) -> dict[str, Any]:
    now = service.engine.status()
    accepting = now.accepting and not service.stopping
    return {
        "status": "down" if not now.alive else "ok" if accepting else "stopping",
        "model": service.model.id,
        "running": now.running,
        "running_limit": now.running_limit,
        "waiting": now.waiting,
        "waiting_limit": now.waiting_limit,
        "kv_bytes": now.kv_bytes,
        "kv_limit": now.kv_limit,
    }
