"""The application: routes, and the layers around them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from mlx_mixtral.errors import MixtralError
from mlx_mixtral.server.asgi import App, HeadAsGet
from mlx_mixtral.server.description import DescribedAPI
from mlx_mixtral.server.failure import ClientGone, ErrorReply, Refusal, refusal_of
from mlx_mixtral.server.intake import Intake
from mlx_mixtral.server.log import Log
from mlx_mixtral.server.metrics import Metrics
from mlx_mixtral.server.ollama.routes import ollama_routes
from mlx_mixtral.server.record import record_of
from mlx_mixtral.server.routes import answer_routes, state_routes, text_routes
from mlx_mixtral.server.security import Doorkeeper, Guarded, KeyCheck
from mlx_mixtral.server.service import JSONReply, Service
from mlx_mixtral.server.static import add_pages
from mlx_mixtral.server.telemetry import Telemetry
from mlx_mixtral.server.validation import invalid


def make_app(service: Service, log: Log) -> App:
    """Everything that a request goes through, the outermost layer first."""
    settings = service.settings
    metrics = Metrics(service.engine.status)
    app: Any = make_api(service, metrics)
    app = Intake(HeadAsGet(app), settings.limits)
    app = KeyCheck(app, settings.api_key)
    if settings.origins:
        app = CORSMiddleware(
            app,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app = Doorkeeper(app, settings)
    return Telemetry(Guarded(app), log, metrics)


def make_api(service: Service, metrics: Metrics) -> FastAPI:
    """The routes."""
    api = DescribedAPI(
        title="mlx-mixtral",
        version=version("mlx-mixtral"),
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        responses={"default": {"model": ErrorReply, "description": "What is wrong."}},
    )
    api.include_router(answer_routes(service))
    api.include_router(text_routes(service))
    api.include_router(state_routes(service, metrics))
    api.include_router(ollama_routes(service))
    add_pages(api)
    for kind in (Refusal, MixtralError, Exception):
        api.add_exception_handler(kind, _tell)
    api.add_exception_handler(ClientGone, _tell_nobody)
    api.add_exception_handler(RequestValidationError, _tell_invalid)
    api.add_exception_handler(HTTPException, _tell_http)
    return api


_ABOUT = (
    "One loaded model, for clients of OpenAI's, Mistral's and Ollama's APIs. Fields that are not "
    "listed are refused."
)


async def _tell(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    if refusal.status >= 500:
        record_of(request.scope).failure = error
    return JSONReply(refusal.told(request.url.path), refusal.status, refusal.headers)


async def _tell_nobody(request: Request, _: Exception) -> Response:
    record_of(request.scope).gone = True
    return Response(status_code=499)


async def _tell_http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 404:
        error = Refusal(404, f"there is nothing at {request.url.path[:200]!r}", code="not_found")
    elif error.status_code == 405:
        told = f"{request.method[:20]} is not for {request.url.path[:200]!r}"
        error = Refusal(405, told, code="method_not_allowed", headers=dict(error.headers or {}))
    else:
        error = Refusal(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    return await _tell(request, error)


async def _tell_invalid(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    return await _tell(request, invalid(error))
