"""A running server as models of the program ``llm`` (https://llm.datasette.io): ``-m mixtral``.

``MIXTRAL_MLX_URL`` says where the server is, ``MIXTRAL_MLX_API_KEY`` its key if it has one.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import llm
from llm.default_plugins.openai_models import AsyncChat, Chat
from openai import APIConnectionError, OpenAI

NAME = "mixtral"


class Mixtral(Chat):  # type: ignore[misc]
    """The model that the server has loaded."""

    needs_key = None
    key_env_var = None

    def __str__(self) -> str:
        return f"mlx-mixtral: {self.model_id}"

    def execute(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from super().execute(*args, **kwargs)
        except APIConnectionError:
            raise _not_there() from None


class AsyncMixtral(AsyncChat):  # type: ignore[misc]
    """The same for ``llm``'s asynchronous interface."""

    needs_key = None
    key_env_var = None

    def __str__(self) -> str:
        return f"mlx-mixtral: {self.model_id}"

    async def execute(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        try:
            async for event in super().execute(*args, **kwargs):
                yield event
        except APIConnectionError:
            raise _not_there() from None


class MixtralEmbedding(llm.EmbeddingModel):  # type: ignore[misc]
    """The server's embeddings."""

    model_id = f"{NAME}-embed"
    batch_size = 32

    def embed_batch(self, items: Iterable[str | bytes]) -> Iterator[list[float]]:
        client = OpenAI(base_url=_url(), api_key=_key())
        try:
            reply = client.embeddings.create(model=NAME, input=[str(item) for item in items])
        except APIConnectionError:
            raise _not_there() from None
        return (vector.embedding for vector in reply.data)


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_models(register: Callable[..., None]) -> None:
    """Called by ``llm``."""
    settings = {
        "model_id": NAME,
        "api_base": _url(),
        "headers": {"Authorization": f"Bearer {_key()}"},
        "supports_schema": True,
        "supports_tools": True,
    }
    register(Mixtral(**settings), AsyncMixtral(**settings))


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_embedding_models(register: Callable[..., None]) -> None:
    """Called by ``llm``."""
    register(MixtralEmbedding())


def _url() -> str:
    return os.environ.get("MIXTRAL_MLX_URL", "http://127.0.0.1:8080").rstrip("/") + "/v1"


def _key() -> str:
    return os.environ.get("MIXTRAL_MLX_API_KEY") or "none"


def _not_there() -> llm.ModelError:
    return llm.ModelError(f"no server answers at {_url()}: start one with `mixtral-mlx serve`")
