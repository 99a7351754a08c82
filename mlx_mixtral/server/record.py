"""What is noted of a request while it is answered, for the log and the metrics."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from mlx_mixtral.server.answers import Usage
from mlx_mixtral.server.asgi import Scope


@dataclass
class Record:
    """One request.

    Attributes:
        id: told to the client as ``x-request-id``.
        route: the path in the API's description, or "other".
        status: of HTTP; 499 where the client left before there was one.
        usage, first_s: tokens of the answers, and seconds until the first of them.
        asked, answered: what the log shows where prompts are to be logged.
        failure: what ended a stream, after its status was sent.
    """

    id: str = field(default_factory=lambda: f"req_{secrets.token_hex(8)}")
    begun: float = field(default_factory=time.monotonic)
    route: str = "other"
    status: int = 499
    gone: bool = False
    usage: Usage | None = None
    first_s: float | None = None
    asked: Any = None
    answered: list[str] = field(default_factory=list)
    failure: Exception | None = None

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.monotonic() - self.begun


def record_of(scope: Scope) -> Record:
    """The record of the request that is being answered."""
    record: Record = scope["mlx_mixtral.record"]
    return record


def begin(scope: Scope) -> Record:
    """A new record, to be found by ``record_of``."""
    record = scope["mlx_mixtral.record"] = Record()
    return record
