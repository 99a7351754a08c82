"""The outermost layer: every request is noted, and every failure becomes an answer."""

from __future__ import annotations

from mlx_mixtral.server.asgi import App, Message, Receive, Scope, Send, send_refusal
from mlx_mixtral.server.failure import ClientGone, refusal_of
from mlx_mixtral.server.log import Log
from mlx_mixtral.server.metrics import Metrics
from mlx_mixtral.server.record import Record, begin

_QUIET = ("/health", "/ready", "/metrics")


class Telemetry:
    """Gives a request its id, and writes the log's line about it."""

    def __init__(self, app: App, log: Log, metrics: Metrics) -> None:
        self._app, self._log, self._metrics = app, log, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record, started = begin(scope), False

        async def noted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started, record.status = True, message["status"]
                own = (b"x-request-id", record.id.encode())
                message["headers"] = [*message["headers"], own]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except ClientGone:
            record.gone = True
        except Exception as error:
            self._log.error("request failed", request=record.id, exc_info=error)
            record.failure = error
            if not started:
                await send_refusal(scope, noted, refusal_of(error))
        finally:
            route = scope.get("route")
            record.route = getattr(route, "path", "other")
            self._metrics.note(record)
            self._tell(scope, record)

    def _tell(self, scope: Scope, record: Record) -> None:
        about: dict[str, object] = {
            "request": record.id,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": record.status,
            "seconds": round(record.seconds, 3),
        }
        if record.gone:
            about["client"] = "left"
        if record.usage:
            about |= {
                "prompt_tokens": record.usage.prompt,
                "cached_tokens": record.usage.cached,
                "completion_tokens": record.usage.completion,
                "accepted_tokens": record.usage.accepted,
            }
        if record.first_s is not None:
            about["first_token_s"] = round(record.first_s, 3)
        if record.failure:
            about["failure"] = str(refusal_of(record.failure))
        if record.asked is not None:
            about |= {"asked": record.asked, "answered": record.answered}
        tell = self._log.debug if record.route in _QUIET else self._log.info
        tell("request", **about)
