"""The API's description: FastAPI's, and what the events of a stream hold."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from mlx_mixtral.server.reply_schema import ChatChunk, TextChunk
from mlx_mixtral.server.responses.described import EVENTS

_PLACE = "#/components/schemas/{model}"


class DescribedAPI(FastAPI):
    """With the objects that stand in events, which no route gives by themselves."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schemas = super().openapi()["components"]["schemas"]
            models: list[type[BaseModel]] = [ChatChunk, TextChunk, *EVENTS]
            for model in models:
                own = model.model_json_schema(ref_template=_PLACE, mode="serialization")
                for name, schema in (own.pop("$defs", {}) | {model.__name__: own}).items():
                    schemas.setdefault(name, schema)
        return super().openapi()


def events_of(*held: type[BaseModel], end: str) -> dict[str, Any]:
    """A stream of events that hold such objects, as OpenAPI 3.2 describes one (and FastAPI 3.1).

    Args:
        end: what the last one holds instead; "" for none.
    """
    choices = [{"$ref": _PLACE.format(model=model.__name__)} for model in held]
    data: dict[str, Any] = {
        "type": "string",
        "if": {"const": end},
        "else": {"contentMediaType": "application/json", "contentSchema": {"anyOf": choices}},
    }
    last = f"The last one is {end}. " if end else ""
    return {
        "itemSchema": {
            "description": f"In events, with stream: true. {last}Lines that begin with a colon say "
            "that work goes on.",
            "type": "object",
            "properties": {"data": data},
            "required": ["data"],
        }
    }
