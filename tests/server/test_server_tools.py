"""Calls of functions: how models are asked for them, held to them, and understood."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import jsonschema
import mistral_common
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_server_grammar import allowed

from mlx_mixtral.errors import UsageError
from mlx_mixtral.server.answers import Answer, AnswerReader
from mlx_mixtral.server.jobs import Done, Piece, TokenInfo
from mlx_mixtral.server.plan import Planner
from mlx_mixtral.server.schema import ChatRequest
from mlx_mixtral.server.tools import CallReader, in_native_form, in_plain_text
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
        {"tools": [{"function": {"name": "f", "parameters": {"not": {}}}}]},
    ],
)
def test_tools_that_cannot_be_had(planners, more):
    with pytest.raises(UsageError):
        planned(planners["v1"], **more)


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
