"""JSON schemas fit to be grammars: narrower, where a model might go on for ever."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

LARGEST_INTEGER = 10**15 - 1
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# JSON Schema's own. Any other format is somebody's note, which holds no answer to anything.
_FORMATS = ("date-time", "time", "date", "duration", "email", "idn-email", "hostname",
            "idn-hostname", "ipv4", "ipv6", "uri", "uri-reference", "uri-template", "iri",
            "iri-reference", "uuid", "json-pointer", "relative-json-pointer", "regex")  # fmt: skip
_VALUES = ("const", "enum", "default", "examples")
_DEFINITIONS = ("$defs", "definitions")
_DEFINITION = re.compile(r"#/(\$defs|definitions)/([^/]*)")
_NAMED = (*_DEFINITIONS, "properties", "patternProperties", "dependentSchemas")
_BESIDE = {"allOf", "title", "description", "default", "examples", "deprecated", "readOnly",
           "writeOnly", "$comment"}  # fmt: skip
_OF_OTHERS = ("additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties",
              "propertyNames", "anyOf", "oneOf", "allOf", "$ref", "if",
              "dependentSchemas")  # fmt: skip


def plain(schema: Any, follows: Callable[[str], bool] | None = None, named: bool = False) -> Any:
    """A schema without formats that mean nothing.

    Args:
        follows: whether a pattern can be kept to; those that cannot are left out too.
        named: what stands here are schemas by name.
    """
    if isinstance(schema, list):
        return [plain(inner, follows) for inner in schema]
    if not isinstance(schema, Mapping):
        return schema
    if named:
        return {name: plain(inner, follows) for name, inner in schema.items()}

    def means_something(key: str, inner: Any) -> bool:
        if key == "format":
            return inner in _FORMATS
        return key != "pattern" or not follows or (isinstance(inner, str) and follows(inner))

    return {
        key: inner if key in _VALUES else plain(inner, follows, key in _NAMED)
        for key, inner in schema.items()
        if means_something(key, inner)
    }


def narrowed(schema: Mapping[str, Any]) -> Any:
    """A schema with bounds where a model may go on for ever; what keeps to it keeps to the first.

    Integers have 15 digits, unless larger ones are asked for: JSON's readers lose those of longer
    numbers. Objects have the properties that are named, where it is not said that there may be
    others, and where nothing else says more about them.
    """
    combined = _combined(schema)
    return _Narrowing(combined or set()).of(schema, closes=combined is not None)


class _Narrowing:
    """How a schema is narrowed that has certain definitions combined with others."""

    def __init__(self, combined: set[str]) -> None:
        self._combined = combined

    def of(self, schema: Any, closes: bool, within: bool = False) -> Any:
        """A part of the schema.

        Args:
            closes: objects are closed.
            within: this is an alternative beside properties of the same object.
        """
        if not isinstance(schema, Mapping):
            return schema
        kind = schema.get("type")
        asked = [schema[key] for key in _BOUNDS if isinstance(schema.get(key), int | float)]
        usual = all(abs(bound) < LARGEST_INTEGER for bound in asked)
        whole = kind == "integer" or (isinstance(kind, list) and "integer" in kind)
        added: dict[str, Any] = {}
        if whole and usual:
            added = {"minimum": -LARGEST_INTEGER, "maximum": LARGEST_INTEGER}
        closes = closes and not _combines(schema)
        if closes and not within and _names_all(schema):
            added |= {"additionalProperties": False}
        within = within or "properties" in schema
        return added | {key: self._at(key, inner, closes, within) for key, inner in schema.items()}

    def _at(self, key: str, value: Any, closes: bool, within: bool) -> Any:
        """What stands at a keyword."""
        if key in _DEFINITIONS and isinstance(value, Mapping):
            return {
                name: self.of(inner, closes and name not in self._combined)
                for name, inner in value.items()
            }
        if key in ("properties", "patternProperties") and isinstance(value, Mapping):
            return {name: self.of(inner, closes) for name, inner in value.items()}
        if key in ("anyOf", "allOf", "oneOf") and isinstance(value, list):
            return [self.of(inner, closes, within) for inner in value]
        if key == "prefixItems" and isinstance(value, list):
            return [self.of(inner, closes) for inner in value]
        return self.of(value, closes) if key in ("items", "additionalProperties") else value


def _names_all(schema: Mapping[str, Any]) -> bool:
    """Whether a schema names properties and says nothing of any other."""
    named, required = schema.get("properties"), schema.get("required", ())
    if not isinstance(named, Mapping) or not isinstance(required, list | tuple):
        return False
    return set(required) <= named.keys() and schema.keys().isdisjoint(_OF_OTHERS)


def _combines(schema: Mapping[str, Any]) -> bool:
    """Whether an allOf stands for several schemas of the same objects, and not just for one."""
    parts = schema.get("allOf")
    return isinstance(parts, list) and (len(parts) > 1 or not schema.keys() <= _BESIDE)


def _combined(schema: Mapping[str, Any]) -> set[str] | None:
    """Names of definitions that an allOf combines with more; None where it may be anything."""
    names: set[str] = set()
    rest: list[Any] = [part for part in _parts(schema) if _combines(part)]
    while rest:
        for part in _parts(rest.pop()):
            place = part.get("$ref")
            if not isinstance(place, str):
                continue
            defined = _DEFINITION.fullmatch(place)
            if defined is None:
                return None
            key, name = defined.groups()
            if name not in names:
                names.add(name)
                rest.append((schema.get(key) or {}).get(name))
    return names


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """All objects of a JSON value."""
    rest = [value]
    while rest:
        inner = rest.pop()
        if isinstance(inner, Mapping):
            yield inner
            rest += inner.values()
        elif isinstance(inner, list):
            rest += inner
