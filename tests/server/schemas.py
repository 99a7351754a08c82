"""Random JSON schemas of the kind that programs ask models for."""

from __future__ import annotations

import json

import jsonschema
from hypothesis import strategies as st

NAMES = st.sampled_from(["name", "age", "größe", "a b", 'quo"te', "x", "items", "ok", "$ref2"])
FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email", "hostname"]
PATTERNS = ["^[a-z]{2,5}$", "^\\d{3}-\\d{4}$", "^(yes|no)$", "^[A-Z][a-zé]{0,8}$"]


def bounded(low: int, high: int, least: str, most: str) -> st.SearchStrategy[dict]:
    """Two limits of which either may be missing, in order."""
    pairs = st.tuples(st.integers(low, high), st.integers(low, high)).map(sorted)
    return st.tuples(pairs, st.sampled_from([(0, 1), (0,), (1,)])).map(
        lambda t: {(least, most)[i]: t[0][i] for i in t[1]}
    )


STRINGS = st.one_of(
    st.integers(0, 12).map(lambda n: {"type": "string", "maxLength": n}),
    st.tuples(st.integers(0, 4), st.integers(4, 9)).map(
        lambda t: {"type": "string", "minLength": t[0], "maxLength": t[1]}
    ),
    st.sampled_from(PATTERNS).map(lambda p: {"type": "string", "pattern": p}),
    st.sampled_from(FORMATS).map(lambda f: {"type": "string", "format": f}),
)
INTEGERS = bounded(-500, 500, "minimum", "maximum").map(lambda b: {"type": "integer", **b})
NUMBERS = bounded(-5, 5, "minimum", "maximum").map(lambda b: {"type": "number", **b})
PLAIN = st.one_of(
    STRINGS,
    INTEGERS,
    NUMBERS,
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.lists(st.sampled_from([1, "two", None, True, 2.5, "é\n"]), min_size=1, unique_by=repr).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from([{"const": {"a": [1, 2]}}, {"const": "x"}, {"type": ["integer", "null"]}]),
)


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[dict]) -> dict:
    """Objects of which some fields are required, with others forbidden or of a type."""
    fields = draw(st.dictionaries(NAMES, inner, max_size=4))
    names = st.sampled_from(sorted(fields)) if fields else st.nothing()
    required = draw(st.lists(names, unique=True)) if fields else []
    more = draw(st.sampled_from([False, False, {"type": "integer", "maximum": 9, "minimum": 0}]))
    return {
        "type": "object",
        "properties": fields,
        "required": required,
        "additionalProperties": more,
    }


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[dict]) -> dict:
    """Lists of a type, or with one for each of the first places."""
    low, high = sorted(draw(st.tuples(st.integers(0, 3), st.integers(0, 3))))
    if draw(st.booleans()):
        return {"type": "array", "items": draw(inner), "minItems": low, "maxItems": high}
    places = draw(st.lists(inner, min_size=1, max_size=3))
    return {"type": "array", "prefixItems": places, "items": False, "minItems": len(places)}


# References are to the root, so named things only come at the top.
_INNER = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        objects(inner),
        arrays(inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda s: {"anyOf": s}),
    ),
    max_leaves=8,
)
SCHEMAS = st.one_of(
    _INNER,
    _INNER.map(
        lambda s: {"$ref": "#/$defs/thing", "$defs": {"thing": s}},
    ),
)


def check_valid(text: str, schema: dict | bool) -> None:
    """Raises ValidationError unless ``text`` is JSON that keeps to the schema."""
    # RFC 3339 has a year 0, a leap year, which Python's dates do not know.
    value = json.loads(text.replace('"0000-', '"0004-'))
    kind = jsonschema.Draft202012Validator
    kind(schema, format_checker=kind.FORMAT_CHECKER).validate(value)
