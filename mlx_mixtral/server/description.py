"""The API's description: FastAPI's, and what the events of a stream hold."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from mlx_mixtral.server.failure import ErrorReply
from mlx_mixtral.server.reply_schema import ChatChunk, TextChunk

_PLACE = "#/components/schemas/{model}"


class DescribedAPI(FastAPI):
    """With the objects that stand in events, which no route gives by themselves."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schemas = super().openapi()["components"]["schemas"]
            for model in (ChatChunk, TextChunk):
                own = model.model_json_schema(ref_template=_PLACE, mode="serialization")
                for name, schema in (own.pop("$defs") | {model.__name__: own}).items():
                    schemas.setdefault(name, schema)
        return super().openapi()


def events_of(chunk: type[BaseModel]) -> dict[str, Any]:
    """A stream of events that hold such chunks, as OpenAPI 3.2 describes one (and FastAPI 3.1)."""
    held = [{"$ref": _PLACE.format(model=model.__name__)} for model in (chunk, ErrorReply)]
    data = {
        "type": "string",
        "if": {"const": "[DONE]"},
        "else": {"contentMediaType": "application/json", "contentSchema": {"anyOf": held}},
    }
    return {
        "itemSchema": {
            "description": "With stream: true. Each event holds a chunk of the answers, or an "
            "error; the last one [DONE]. Lines that begin with a colon say that work goes on.",
            "type": "object",
            "properties": {"data": data},
            "required": ["data"],
        }
    }
