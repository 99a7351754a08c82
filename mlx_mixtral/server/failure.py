"""What a client is told when something is wrong: OpenAI's error objects."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from mlx_mixtral.errors import ContextError, MixtralError, UsageError
from mlx_mixtral.server.jobs import Busy

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_LONGEST = 1000


class ErrorDetail(BaseModel):
    """One thing that is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail


class Refusal(Exception):
    """A request that is not going to be answered.

    Attributes:
        status: of HTTP.
        param: the field of the request that is wrong.
        code: a word for programs.
        headers: to go with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = headers or {}

    def told(self, path: str) -> dict[str, Any]:
        """What the client of a route understands: OpenAI's error object, or Ollama's."""
        return {"error": self._message} if path.startswith("/api/") else self.body

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = _TYPES.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        error = {"message": self._message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def _message(self) -> str:
        message = str(self)
        return f"{message[:_LONGEST]} ..." if len(message) > _LONGEST else message


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def refusal_of(error: Exception) -> Refusal:
    """What to tell a client about an exception; nothing of its insides unless meant for people."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Busy):
        return _busy(error)
    if isinstance(error, ContextError):
        return Refusal(400, str(error), code="context_length_exceeded")
    if isinstance(error, UsageError):
        return Refusal(400, str(error), code="invalid_value")
    if isinstance(error, MixtralError):
        return Refusal(500, str(error), code="model_error")
    return Refusal(500, "the server failed at this request; its log says why", code="internal")


def _busy(error: Busy) -> Refusal:
    if error.retry_after is None:
        return Refusal(503, str(error), code="stopping", headers={"Retry-After": "30"})
    seconds = str(max(1, round(error.retry_after)))
    return Refusal(429, str(error), code="queue_full", headers={"Retry-After": seconds})


def json_bytes(value: object) -> bytes:
    """``value`` as JSON, whatever text is in it: half a surrogate pair becomes a question mark."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace")
