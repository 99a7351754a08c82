"""Calls of functions: how models are asked for them, held to them, and understood."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import jsonschema
import mistral_common
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_server_grammar import allowed

from mlx_mixtral.errors import ContextError, UsageError
from mlx_mixtral.server.answers import Answer, AnswerReader
from mlx_mixtral.server.history import in_native_form, in_plain_text
from mlx_mixtral.server.jobs import Done, Piece, TokenInfo
from mlx_mixtral.server.plan import Planner
from mlx_mixtral.server.schema import ChatRequest, Message
from mlx_mixtral.server.tools import CallReader
from mlx_mixtral.template import template_for
from mlx_mixtral.tokenizer import Tokenizer

DATA = Path(mistral_common.__file__).parent / "data"
FILES = {
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
}
VERSIONS = ["v1", "v2", "v3"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 8},
                    "when": {"type": "object", "properties": {"day": {"enum": [1, "x}{\\\""]}},
                             "required": ["day"], "additionalProperties": False},
                },
                "required": ["city", "when"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]  # fmt: skip
SCHEMAS = {
    "get_weather": TOOLS[0]["function"]["parameters"],
    "now": {"type": "object", "additionalProperties": False},
}
ASKED = [{"role": "user", "content": "Weather?"}]


@pytest.fixture(scope="module")
def models(demo, tmp_path_factory):
    """The demo with the tokenizers and templates of other models; its weights do not matter."""
    found = {"v1": demo}
    for version, file in FILES.items():
        folder = tmp_path_factory.mktemp(version)
        (folder / "tokenizer.model").write_bytes((DATA / file).read_bytes())
        tokenizer = Tokenizer.from_folder(folder)
        config = replace(demo.config, vocab_size=32_768)
        template = template_for(tokenizer, folder)
        found[version] = replace(demo, tokenizer=tokenizer, template=template, config=config)
    return found


@pytest.fixture(scope="module")
def planners(models):
    return {version: Planner(lm) for version, lm in models.items()}


def planned(planner, **more):
    return planner.chat(ChatRequest.model_validate({"messages": ASKED, "tools": TOOLS, **more}))


def answered(lm, plan, choose, most=400):
    """What a client is told of an answer whose tokens ``choose`` picks from those allowed."""
    kept, answer = plan.jobs[0].grammar, Answer()
    reader, spelled = AnswerReader(plan, lm.tokenizer), lm.tokenizer.detokenizer()
    for _ in range(most):
        if kept.done:
            break
        token = choose(allowed(kept, lm.config.vocab_size))
        if token in lm.tokenizer.stop_ids:
            break
        kept.accept(token)
        answer.add(reader.read(Piece(spelled.push(token), (TokenInfo(token, -1.0),))))
    answer.add(reader.read(Piece(spelled.flush(), ())))
    answer.add(reader.read(Done("stop")))
    return answer


def hasty(lm, seed):
    draw = random.Random(seed)
    bytes_of = lm.tokenizer.bytes_of
    closing = {i for i in range(lm.config.vocab_size) if bytes_of(i)[-1:] in b'"]}'}

    def choose(options):
        if draw.random() < 0.5:
            options = sorted(closing.intersection(options)) or options
        return draw.choice(options)

    return choose


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("seed", range(4))
def test_a_call_that_is_demanded_keeps_to_its_schema(models, planners, version, seed):
    lm = models[version]
    answer = answered(lm, planned(planners[version], tool_choice="required"), hasty(lm, seed))
    assert answer.reason == "tool_calls"
    assert answer.text == ""
    assert answer.calls
    for call in answer.calls:
        jsonschema.validate(json.loads(call["arguments"]), SCHEMAS[call["name"]])
        assert len(call["id"]) == 9


@pytest.mark.parametrize("version", VERSIONS)
def test_the_one_that_is_named_and_no_more_than_one(models, planners, version):
    named = {"type": "function", "function": {"name": "now"}}
    plan = planned(planners[version], tool_choice=named, parallel_tool_calls=False)
    (call,) = answered(models[version], plan, hasty(models[version], 1)).calls
    assert (call["name"], call["arguments"]) == ("now", "{}")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "text", ["Hello there.", "[1, 2]", "[TOOL", "[TOOL_CALL] x", "a [TOOL_CALLS] b", "x"]
)
def test_words_are_left_alone(models, planners, version, text):
    lm = models[version]
    ids = [*lm.tokenizer.encode(text), lm.tokenizer.eos_id]
    said = iter(ids)

    def choose(options):
        token = next(said)
        assert token in options
        return token

    answer = answered(lm, planned(planners[version]), choose)
    assert (answer.text, answer.calls, answer.reason) == (text, [], "stop")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_call_of_the_models_own_will(models, planners, version):
    lm = models[version]
    call = '[{"name": "now", "arguments": {}}]'
    if version == "v1":
        ids = lm.tokenizer.encode(f"[TOOL_CALLS] {call}")
    else:
        ids = [lm.tokenizer.control_id("[TOOL_CALLS]"), *lm.tokenizer.encode(call)]
    said = iter(ids)
    answer = answered(lm, planned(planners[version]), lambda options: next(said))
    assert answer.text == ""
    assert [c["name"] for c in answer.calls] == ["now"]
    assert answer.reason == "tool_calls"


def test_json_or_a_call(models, planners):
    form = {"type": "json_schema", "json_schema": {"schema": {"const": "no"}}}
    for version in VERSIONS:
        plan = planned(planners[version], response_format=form)
        seen = set()
        for seed in range(12):
            answer = answered(models[version], plan, hasty(models[version], seed))
            plan = planned(planners[version], response_format=form)
            seen.add(answer.reason)
            assert answer.calls or json.loads(answer.text) == "no"
        assert "tool_calls" in seen or "stop" in seen


def test_no_tool_is_told_where_none_may_be_called(planners):
    for planner in planners.values():
        without = planner.chat(ChatRequest(messages=[{"role": "user", "content": "Weather?"}]))
        plan = planned(planner, tool_choice="none")
        assert plan.jobs[0].prompt == without.jobs[0].prompt
        assert plan.jobs[0].grammar is None


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_native_prompts_are_those_of_the_template(models, planners, version):
    expected = models[version].template.encode(ASKED, tools=TOOLS)
    assert list(planned(planners[version]).jobs[0].prompt) == expected


def test_ids_of_other_servers_become_mistrals():
    call = {"id": "call_abc", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    own = {**call, "id": "abcDEF123"}
    turns = in_native_form(
        [
            {"role": "assistant", "tool_calls": [call, own]},
            {"role": "tool", "tool_call_id": "call_abc", "content": "1"},
        ]
    )
    first, second = (c["id"] for c in turns[0]["tool_calls"])
    assert second == "abcDEF123"
    assert len(first) == 9
    assert first.isalnum()
    assert turns[1]["tool_call_id"] == first
    assert turns[1]["name"] == "f"


def test_calls_and_results_in_words():
    call = {"id": "c", "function": {"name": "f", "arguments": '{"a": "é"}'}}
    told, before, asked, result = in_plain_text(
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Wait.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "7"}]},
        ],
        TOOLS,
    )
    assert told["role"] == "system"
    assert "get_weather" in told["content"]
    assert before["content"] == "Hi"
    assert asked["content"] == 'Wait.\n[TOOL_CALLS] [{"name": "f", "arguments": {"a": "é"}}]'
    assert result == {"role": "user", "content": "Result of f: 7"}


@pytest.mark.parametrize(
    "more",
    [
        {"tool_choice": {"type": "function", "function": {"name": "missing"}}},
        {"tools": [TOOLS[1], TOOLS[1]]},
        {"tools": [{"function": {"name": "f", "parameters": {"type": "array"}}}]},
        {"tools": [{"function": {"name": "f", "strict": True, "parameters": {"not": {}}}}]},
    ],
)
def test_tools_that_cannot_be_had(planners, more):
    with pytest.raises(UsageError):
        planned(planners["v1"], **more)


ODD = [
    {"propertyNames": {"pattern": "^a"}, "additionalProperties": {"type": "integer"}},
    {"properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}}},
    {"properties": {"a": {"type": "string", "format": "iri"}}},
    {"properties": {"a": {"type": "string", "pattern": "^(?=.*[0-9]).{8}$"}}},
    {"properties": {"a": {"type": "string", "pattern": r"^(a|b)\1$"}}},
    {"properties": {"a": {"not": {"type": "string"}}}},
    {"properties": {"a": {"type": "integer"}}, "if": {"required": ["a"]}, "then": {}},
]


@pytest.mark.parametrize("schema", ODD, ids=str)
@pytest.mark.parametrize("version", ["v1", "v3"])
def test_what_cannot_be_kept_to_is_left_out_unless_it_is_strict(planners, models, version, schema):
    """One such schema of many, as servers of the Model Context Protocol have them."""
    function = {"name": "odd", "parameters": {"type": "object", **schema}}
    plan = planned(
        planners[version], tools=[*TOOLS, {"function": function}],
        tool_choice={"type": "function", "function": {"name": "odd"}}, parallel_tool_calls=False,
    )  # fmt: skip
    (call,) = answered(models[version], plan, hasty(models[version], 4)).calls
    assert call["name"] == "odd"
    assert isinstance(json.loads(call["arguments"]), dict)
    with pytest.raises(
        UsageError, match="parameters of odd: the schema cannot be honoured"
    ) as told:
        planned(planners[version], tools=[*TOOLS, {"function": function | {"strict": True}}])
    assert "start:" not in str(told.value)
    assert "%json" not in str(told.value)


def test_as_many_tools_as_openai_takes(planners):
    tools = [
        {"function": {"name": f"tool_{n}", "parameters": {"type": "object", "properties": {
            f"argument_{m}": {"type": ["string", "null"], "description": "x" * 40}
            for m in range(8)}}}}
        for n in range(128)
    ]  # fmt: skip
    with suppress(ContextError):  # the demo's is small
        planned(planners["v1"], tools=tools)
    plan = planned(planners["v3"], tools=[*tools[:20]])
    assert plan.jobs[0].grammar is not None


def test_a_form_for_one_result_a_turn_gets_one_call(models, planners):
    calls = answered(
        models["v2"], planned(planners["v2"], tool_choice="any"), hasty(models["v2"], 1)
    ).calls
    assert len(calls) == 1


# --- conversations as they come


def encoded(models, version, turns):
    return models[version].template.encode(turns)


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_texts_of_the_system_may_stand_anywhere(models, planners, version):
    system = {"role": "system", "content": "Be brief."}
    later = {"role": "developer", "content": "Be kind."}
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    last = {"role": "user", "content": "Bye"}
    sent = [Message(**turn) for turn in (system, *talk, later, last)]
    first = [system, {**later, "role": "system"}, *talk, last]
    assert planners[version].conversation(sent) == encoded(models, version, first)


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
@pytest.mark.parametrize("empty", ["", None, []])
def test_an_empty_message_of_the_assistant_is_left_out(models, planners, version, empty):
    hi, bye = {"role": "user", "content": "Hi"}, {"role": "user", "content": "Bye"}
    nothing = {"role": "assistant", "content": empty}
    sent = [Message.model_validate(turn) for turn in (hi, nothing, bye)]
    assert planners[version].conversation(sent) == encoded(models, version, [hi, bye])
    sent = [Message.model_validate(turn) for turn in (hi, nothing)]
    assert planners[version].conversation(sent) == encoded(models, version, [hi])


def test_text_beside_a_call_and_a_call_without_a_result(models, planners):
    calls = [
        {"id": i, "function": {"name": "get_time", "arguments": "{}"}}
        for i in ("abcdefgh1", "abcdefgh2")
    ]
    hi, why = {"role": "user", "content": "Hi"}, {"role": "user", "content": "Why?"}
    asked = {"role": "assistant", "content": "Wait.", "tool_calls": calls}
    result = {"role": "tool", "tool_call_id": "abcdefgh1", "content": "7"}
    nothing = {"role": "tool", "tool_call_id": "abcdefgh2", "content": ""}
    plain = [hi, {**asked, "content": None}, result, nothing, why]
    for sent in ([hi, asked, result, why], [hi, asked, result, nothing, why]):
        messages = [Message.model_validate(turn) for turn in sent]
        assert planners["v3"].conversation(messages) == encoded(models, "v3", plain)
    messages = [Message.model_validate(turn) for turn in (hi, asked)]
    for version in ("v1", "v3"):
        with pytest.raises(UsageError, match="add its result"):
            planners[version].conversation(messages)


@given(
    calls=st.lists(
        st.tuples(
            st.from_regex(r"[a-zA-Z0-9_-]{1,9}", fullmatch=True),
            st.dictionaries(
                st.text(max_size=5), st.recursive(st.text(max_size=6) | st.integers(),
                lambda inner: st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3)),
                max_size=3,
            ),
        ),
        min_size=1,
        max_size=4,
    ),
    cuts=st.lists(st.integers(1, 9), max_size=60),
)  # fmt: skip
def test_calls_are_read_the_same_however_they_are_cut(calls, cuts):
    text = json.dumps([{"name": name, "arguments": given} for name, given in calls])
    reader, answer = CallReader(), Answer()
    at = 0
    for length in [*cuts, len(text)]:
        for part in reader.push(text[at : at + length]):
            if part.name is not None:
                answer.calls.append({"id": part.id, "name": part.name, "arguments": ""})
            answer.calls[part.index]["arguments"] += part.arguments
        at += length
    told = [(call["name"], json.loads(call["arguments"])) for call in answer.calls]
    assert told == [(name, given) for name, given in calls]
