"""The routes of Ollama's API."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_mixtral.server.embedding import unit_vectors
from mlx_mixtral.server.ollama.described import (
    OllamaChatReply,
    OllamaEmbeddingsReply,
    OllamaEmbedReply,
    OllamaError,
    OllamaGenerateReply,
    OllamaModelsReply,
    OllamaShowReply,
    OllamaVersionReply,
)
from mlx_mixtral.server.ollama.listing import VERSION, Listing
from mlx_mixtral.server.ollama.reply import OllamaReply
from mlx_mixtral.server.ollama.request import (
    OllamaAnswering,
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from mlx_mixtral.server.schema import ChatRequest, CompletionRequest
from mlx_mixtral.server.service import JSONReply, Service

_LINES = {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}


def ollama_routes(service: Service) -> APIRouter:
    """Everything below ``/api``."""
    routes = APIRouter(
        prefix="/api", tags=["ollama"], responses={"default": {"model": OllamaError}}
    )
    listing = Listing(service.lm, service.model)

    @routes.post("/chat", responses={200: {"model": OllamaChatReply, **_LINES}})
    async def chat(request: Request, asked: OllamaChatRequest) -> Response:
        """Answer a conversation."""
        return await answered(request, asked, asked.as_chat() if asked.messages else None)

    @routes.post("/generate", responses={200: {"model": OllamaGenerateReply, **_LINES}})
    async def generate(request: Request, asked: OllamaGenerateRequest) -> Response:
        """Answer a prompt."""
        return await answered(request, asked, asked.as_request() if asked.prompt else None)

    async def answered(
        request: Request, asked: OllamaAnswering, wanted: ChatRequest | CompletionRequest | None
    ) -> Response:
        service.model.check(asked.model, tagged=True)
        is_chat = isinstance(asked, OllamaChatRequest)
        tokenizer = service.lm.tokenizer
        reply = OllamaReply(service.model.id, tokenizer, is_chat, bool(asked.logprobs))
        if wanted is None:
            return JSONReply(reply.nothing())
        return await service.answer(request, wanted, reply, lines=reply.idle)

    @routes.post("/embed", responses={200: {"model": OllamaEmbedReply}})
    async def embed(request: Request, asked: OllamaEmbedRequest) -> Response:
        """Vectors of texts, of length 1."""
        service.model.check(asked.model, tagged=True)
        begun = perf_counter()
        prompts = await asyncio.to_thread(service.planner.texts, asked.input)
        if asked.truncate is not False:
            prompts = [prompt[: service.model.context - 1] for prompt in prompts]
        vectors = await embedded(request, prompts)
        return JSONReply(
            {
                "model": service.model.id,
                "embeddings": vectors,
                "total_duration": round((perf_counter() - begun) * 1e9),
                "load_duration": 0,
                "prompt_eval_count": sum(map(len, prompts)),
            }
        )

    @routes.post("/embeddings", responses={200: {"model": OllamaEmbeddingsReply}})
    async def embeddings(request: Request, asked: OllamaEmbeddingsRequest) -> Response:
        """The vector of one text: the older route."""
        service.model.check(asked.model, tagged=True)
        prompts = await asyncio.to_thread(service.planner.texts, asked.prompt)
        return JSONReply({"embedding": (await embedded(request, prompts))[0]})

    async def embedded(request: Request, prompts: Sequence[tuple[int, ...]]) -> Any:
        return unit_vectors(await service.embedded(request, prompts)).tolist()

    @routes.get("/tags", responses={200: {"model": OllamaModelsReply}})
    async def tags() -> Response:
        """The model, in a list."""
        return JSONReply(await asyncio.to_thread(lambda: listing.tags))

    @routes.get("/ps", responses={200: {"model": OllamaModelsReply}})
    async def running() -> Response:
        """The same: it runs as long as the server."""
        return JSONReply(await asyncio.to_thread(lambda: listing.running))

    @routes.post("/show", responses={200: {"model": OllamaShowReply}})
    async def show(asked: OllamaShowRequest) -> Response:
        """The model's details."""
        service.model.check(asked.model or asked.name, tagged=True)
        return JSONReply(await asyncio.to_thread(lambda: listing.shown))

    @routes.get("/version", responses={200: {"model": OllamaVersionReply}})
    async def told_version() -> Response:
        """The version of Ollama whose API this is."""
        return JSONReply({"version": VERSION})

    return routes
