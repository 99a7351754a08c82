"""Answers kept to a schema: whatever a model prefers, what it may say is right."""

from __future__ import annotations

import json
import random
import re
import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from schemas import SCHEMAS, check_valid
from served import examples

from mlx_mixtral.errors import MixtralError, UsageError
from mlx_mixtral.server.grammar import SCHEMA_BYTES, Grammars, json_grammar, keeper


@pytest.fixture(scope="module")
def grammars(demo):
    return Grammars(demo.tokenizer, demo.config.vocab_size)


def allowed(kept, size):
    bits = np.unpackbits(kept.mask().view(np.uint8), bitorder="little")
    return np.flatnonzero(bits[:size]).tolist()


def said(lm, kept, choose, most=600):
    """An answer that a model with these preferences gives, or None if it is too long."""
    ids = []
    while not kept.done:
        options = allowed(kept, lm.config.vocab_size)
        assert options, "nothing may follow, and yet it is not the end"
        token = choose(options)
        if token in lm.tokenizer.stop_ids:
            break
        kept.accept(token)
        ids.append(token)
        if len(ids) > most:
            return None
    return lm.tokenizer.decode(ids)


def hasty(lm, seed):
    """A model that likes to come to an end, and has no other taste."""
    draw = random.Random(seed)
    size = lm.config.vocab_size
    closing = {i for i in range(size) if lm.tokenizer.bytes_of(i)[-1:] in b'"]},'}

    def choose(options):
        if draw.random() < 0.6:
            options = sorted(closing.intersection(options)) or options
        return draw.choice(options)

    return choose


@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SCHEMAS, st.integers(0, 9))
@example({"type": "object", "properties": {'quo"te': {"const": "é\n"}}, "required": ['quo"te']}, 0)
def test_whatever_is_chosen_keeps_to_the_schema(demo, grammars, schema, seed):
    try:
        compiled = grammars.compiled(json_grammar(schema))
    except UsageError as error:
        # Of what is generated here, only a range without any number in it is impossible.
        told = str(error)
    else:
        told = ""
        text = said(demo, keeper(compiled), hasty(demo, seed))
        if text is not None:
            check_valid(text, schema)
    assert not told or "nsatisfiable" in told


def test_two_answers_do_not_disturb_each_other(demo, grammars):
    compiled = grammars.compiled(json_grammar({"enum": ["abc", "xyz"]}))
    one, two = keeper(compiled), keeper(compiled)
    first = said(demo, one, lambda options: options[0])
    second = said(demo, two, lambda options: options[-1])
    assert {json.loads(first), json.loads(second)} <= {"abc", "xyz"}


def test_json_is_written_on_one_line(demo, grammars):
    """A model that may go on with blanks for ever, at times does."""
    compiled = grammars.compiled(json_grammar({"type": "array", "items": {"const": 1}}))
    kept = keeper(compiled)
    spaces = [i for i in range(4096) if demo.tokenizer.bytes_of(i).isspace()]
    text = said(demo, kept, lambda options: ([i for i in options if i in spaces] or options)[0], 60)
    assert text is None or "  " not in text


def test_integers_come_to_an_end(demo, grammars):
    """Greedy, a small model writes digits until the context is full."""
    number = {"type": ["integer", "null"]}
    wanted = {
        "type": "object",
        "properties": {"type": {"$ref": "#/$defs/n"}, "items": {"type": "array", "items": number}},
        "required": ["type"],
        "additionalProperties": False,
        "$defs": {"n": {"anyOf": [{"type": "integer", "minimum": 5}]}},
    }
    nine, end = (demo.tokenizer.encode(text)[-1] for text in "9}")

    def choose(options):
        return next((token for token in (nine, end) if token in options), options[-1])

    kept = keeper(grammars.compiled(json_grammar(wanted)))
    text = said(demo, kept, choose, 60)
    assert re.match(r'\{"type": 9{15}}', text.lstrip())
    check_valid(text, wanted)
    large = {"type": "integer", "minimum": 10**16}
    text = said(demo, keeper(grammars.compiled(json_grammar(large))), hasty(demo, 1))
    check_valid(text, large)


NAMED = {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/b"}}
INNER = {"type": "object", "properties": {"c": {"type": "boolean"}}}
OTHERS = [
    {"additionalProperties": True},
    {"minProperties": 3, "required": ["a"]},
    {"required": ["z"]},
    {"patternProperties": {"^z": {"type": "integer"}}},
    {"anyOf": [{"required": ["z"]}, {"properties": {"y": {"type": "integer"}}, "required": ["y"]}]},
    {"allOf": [{"properties": {"z": {"type": "integer"}}, "required": ["z"]}]},
]


@given(seed=st.integers(0, 2**32))
def test_an_object_has_no_properties_that_nobody_asked_for(demo, grammars, seed):
    """Models may invent them for ever; a schema that says nothing of others allows them."""
    schema = {"type": "object", "properties": NAMED, "$defs": {"b": INNER}, "required": ["b"]}
    kept = keeper(grammars.compiled(json_grammar(schema)))
    text = said(demo, kept, hasty(demo, seed))
    assert text is not None
    value = json.loads(text)
    assert value.keys() <= {"a", "b"}
    assert value["b"].keys() <= {"c"}


PART = {"properties": {"z": {"type": "integer"}}, "required": ["z"]}
WHOLE = [
    {"allOf": [{"$ref": "#/$defs/k"}], "description": "As older versions of pydantic write it."},
    {"$ref": "#/$defs/k"},
    {"anyOf": [{"$ref": "#/$defs/k"}, {"type": "null"}]},
]
COMBINED = [
    {"allOf": [{"$ref": "#/$defs/k"}, PART]},
    {"allOf": [{"$ref": "#/$defs/k"}], **PART},
    {"allOf": [{"anyOf": [{"$ref": "#/$defs/k"}, {"$ref": "#/$defs/k"}]}, PART]},
    {"allOf": [{"$ref": "#/properties/other"}, PART]},
]
DEFINED = {"k": {"type": "object", "properties": {"c": {"type": "boolean"}}}}


@pytest.mark.parametrize("inner", WHOLE, ids=str)
def test_an_allof_of_one_schema_opens_nothing(demo, grammars, inner):
    schema = {"type": "object", "properties": {"a": inner, "b": {"type": "boolean"}},
              "required": ["a"], "$defs": DEFINED}  # fmt: skip
    grammar = json_grammar(schema)
    for seed in range(20):
        value = json.loads(said(demo, keeper(grammars.compiled(grammar)), hasty(demo, seed)))
        assert value.keys() <= {"a", "b"}
        assert (value["a"] or {}).keys() <= {"c"}


@pytest.mark.parametrize("inner", COMBINED, ids=str)
def test_what_an_allof_combines_stays_open(demo, grammars, inner):
    """Closed, its parts would forbid each other's properties."""
    schema = {"type": "object", "properties": {"a": inner, "other": DEFINED["k"]},
              "required": ["a"], "$defs": DEFINED}  # fmt: skip
    grammar = json_grammar(schema)
    texts = [
        said(demo, keeper(grammars.compiled(grammar)), hasty(demo, seed)) for seed in range(20)
    ]
    assert any(texts)
    for text in filter(None, texts):
        check_valid(text, schema)
        assert "z" in json.loads(text)["a"]


@pytest.mark.parametrize("name", ["int64", "password", "path", "made-up"])
def test_a_format_that_is_only_a_note_is_no_obstacle(grammars, name):
    schema = {
        "properties": {"format": {"type": "string", "format": name}, "b": {"const": "format"}}
    }
    assert grammars.compiled(json_grammar({"type": "object", **schema}))


def test_why_a_pattern_is_refused(grammars):
    with pytest.raises(UsageError, match="backreferences are not supported"):
        grammars.compiled(json_grammar({"type": "string", "pattern": r"(a)\1"}))


@pytest.mark.parametrize("others", OTHERS, ids=lambda others: next(iter(others)))
def test_others_stay_possible_where_they_are_asked_for(demo, grammars, others):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, **others}
    grammar = json_grammar(schema)
    found = set()
    for seed in range(40):
        text = said(demo, keeper(grammars.compiled(grammar)), hasty(demo, seed))
        if text:
            check_valid(text, schema)
            found |= json.loads(text).keys()
    assert found - {"a"}


def test_a_token_that_breaks_the_grammar_is_refused(demo, grammars):
    kept = keeper(grammars.compiled(json_grammar({"const": 1})))
    with pytest.raises(MixtralError, match="grammar"):
        kept.accept(demo.tokenizer.encode("x")[0])


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "nonsense"},
        {"not": {"type": "string"}},
        {"$ref": "http://example.com/schema.json"},
        {"$ref": "#/$defs/missing"},
        {"type": "array", "uniqueItems": True},
        {"type": "string", "pattern": "("},
        {"x-guidance": {"lenient": True}, "not": {}},
        {"type": "string", "enum": ["x" * SCHEMA_BYTES]},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"type": "string", "minLength": 3, "maxLength": 2},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
def test_what_cannot_be_honoured_is_refused_soon(grammars, schema):
    begun = time.monotonic()
    with pytest.raises(UsageError, match="schema"):
        grammars.compiled(json_grammar(schema))
    assert time.monotonic() - begun < 2


def test_schemas_that_are_too_deep_are_refused(grammars):
    schema: dict = {"type": "integer"}
    for _ in range(80):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UsageError, match="levels deep"):
        grammars.compiled(json_grammar(schema))


def test_one_that_refers_to_itself(demo, grammars):
    tree = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
        "additionalProperties": False,
    }
    for seed in range(20):
        text = said(demo, keeper(grammars.compiled(json_grammar(tree))), hasty(demo, seed))
        if text:
            check_valid(text, tree)


def test_a_pattern_that_grows_without_bounds_is_given_up_in_time(grammars):
    """At once, or token by token; never the whole machine."""
    begun = time.monotonic()
    wanted = {"type": "string", "pattern": "^(((a{1,500}){1,500}){1,500}b?){1,500}$"}
    with suppress(UsageError, MixtralError):
        kept = keeper(grammars.compiled(json_grammar(wanted)))
        for token in grammars_tokens(kept, 50):
            kept.accept(token)
    assert time.monotonic() - begun < 10


def grammars_tokens(kept, most):
    """Whatever may follow first, again and again."""
    for _ in range(most):
        yield allowed(kept, 4096)[-1]
