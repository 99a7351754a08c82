"""The API's description as a page: no scripts, nothing from elsewhere."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

Schema = Mapping[str, Any]
_CODE = re.compile("``(.+?)``")


def docs_page(openapi: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI document: every route, and every object that it takes or gives."""
    about = openapi["info"]
    schemas: Mapping[str, Schema] = openapi["components"]["schemas"]
    lines = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="/assets/mark.svg" type="image/svg+xml">',
        '<link rel="stylesheet" href="/assets/base.css">',
        '<link rel="stylesheet" href="/assets/docs.css">',
        f"<title>{escape(about['title'])} API</title><main>",
        f"<h1>{escape(about['title'])} {escape(about['version'])}</h1>",
        f"<p>{escape(about['description'])}</p>",
        '<p>For programs: <a href="/openapi.json">/openapi.json</a>. A chat: <a href="/">/</a></p>',
        "<h2>Routes</h2>",
    ]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            lines += _route(path, method, operation)
    lines.append("<h2>Objects</h2>")
    for name, schema in schemas.items():
        lines += _object(name, schema)
    return "\n".join([*lines, "</main>"])


def _route(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h3><code>{method.upper()} {escape(path)}</code></h3>"
    yield f"<p>{escape(operation.get('description') or operation['summary'])}</p><dl>"
    for kind, schema in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<dt>takes {escape(kind)}</dt><dd>{_type(schema['schema'])}</dd>"
    for status, reply in operation["responses"].items():
        for kind, schema in reply.get("content", {}).items():
            what = (
                _events(schema["itemSchema"]) if "itemSchema" in schema else _type(schema["schema"])
            )
            yield f"<dt>{escape(status)}: {escape(kind)}</dt><dd>{what}</dd>"
    yield "</dl>"


def _events(schema: Schema) -> str:
    """What the events of a stream hold."""
    held = schema["properties"]["data"]["else"]["contentSchema"]
    return f"{_type(held)}. {escape(schema['description'])}"


def _object(name: str, schema: Schema) -> Iterator[str]:
    yield f'<h3 id="{escape(name)}">{escape(name)}</h3>'
    about = _CODE.sub(r"<code>\1</code>", escape(schema.get("description", "")))
    yield f"<p>{about}</p>"
    if not schema.get("properties"):
        return
    yield '<div class="scroll"><table><tr><th>field<th>type<th>default<th>'
    required = schema.get("required", ())
    for field, inner in schema["properties"].items():
        default = "required" if field in required else escape(_default(inner))
        about = escape(inner.get("description", ""))
        yield (f"<tr><td><code>{escape(field)}</code><td>{_type(inner)}<td>{default}<td>{about}")
    yield "</table></div>"


def _default(schema: Schema) -> str:
    """What a field is where it is left out; nothing for null, which says as little."""
    return "" if schema.get("default") is None else json.dumps(schema["default"])


def _type(schema: Schema) -> str:
    """A type in words, with links to objects. That it may be null is left out."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for key in ("anyOf", "oneOf"):
        if key in schema:
            kinds = [inner for inner in schema[key] if inner.get("type") != "null"]
            return " or ".join(_type(inner) for inner in kinds)
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}{_bounds(schema)}"
    return f"{escape(kind)}{_bounds(schema)}"


def _bounds(schema: Schema) -> str:
    names = {
        "minimum": "from",
        "maximum": "to",
        "minLength": "of at least",
        "maxLength": "of at most",
        "minItems": "of at least",
        "maxItems": "of at most",
        "pattern": "like",
    }
    told = [f"{word} {_number(schema[key])}" for key, word in names.items() if key in schema]
    return escape(f" ({', '.join(told)})") if told else ""


def _number(bound: float | str) -> str:
    """A bound as a person writes it: 2 for 2.0, and powers of two for the largest."""
    if isinstance(bound, str):
        return bound
    large = abs(bound) > 2**30
    return f"2^{round(math.log2(abs(bound)))}" if large else f"{bound:g}"
