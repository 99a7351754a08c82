"""``/v1/responses`` as OpenAI's own client sees it, with every reply checked against its types."""

from __future__ import annotations

import json

import openai
import pytest
from pydantic import BaseModel, Field
from served import ANSWER, QUESTION
from test_server_openai import WEATHER

TOOL = {"type": "function", "strict": True, **WEATHER["function"]}


def ask(client, said=QUESTION, **more):
    return client.responses.create(model="demo", input=said, **{"temperature": 0, **more})


def test_an_answer(client):
    reply = ask(client)
    assert reply.output_text == ANSWER
    assert (reply.status, reply.object, reply.model) == ("completed", "response", "demo")
    usage = reply.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (8, 13, 21)
    assert reply.store is False


def test_streamed_it_is_the_same(client):
    events = list(ask(client, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added",
        *["output_text.delta"] * deltas,
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    said = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(said) == ANSWER
    assert len(said) > 8
    last = events[-1].response
    assert last.output_text == ANSWER
    assert last.output[0].id == events[2].item.id == events[4].item_id
    assert last.usage.output_tokens == 13


def test_a_conversation(client, demo, post):
    talk = [
        {"role": "user", "content": "My name is Anna."},
        {"role": "assistant", "content": "Hello, Anna."},
        {"role": "user", "content": [{"type": "input_text", "text": "What is my name?"}]},
    ]
    first = ask(client, talk)
    assert first.output_text == "Your name is Anna."
    # What came back is sent again as it is.
    again = ask(client, [*talk, *first.output, {"role": "user", "content": QUESTION}])
    plain = [
        *talk[:2],
        {"role": "user", "content": "What is my name?"},
        {"role": "assistant", "content": "Your name is Anna."},
        {"role": "user", "content": QUESTION},
    ]
    assert again.usage.input_tokens == len(demo.template.encode(plain))
    with_system = ask(client, QUESTION, instructions="Be brief.")
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    assert with_system.usage.input_tokens == len(demo.template.encode(talk))
    assert with_system.instructions == "Be brief."


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut(client, stream):
    reply = ask(client, max_output_tokens=3, stream=stream)
    if stream:
        events = list(reply)
        assert events[-1].type == "response.incomplete"
        reply = events[-1].response
    assert reply.status == "incomplete"
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.output[0].status == "incomplete"
    assert reply.usage.output_tokens == 3


def test_a_function_is_called_and_answers(client):
    talk = [{"role": "user", "content": "How is the weather in Paris?"}]
    asked = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    reply = ask(client, talk, **asked)
    (call,) = reply.output
    assert call.type == "function_call"
    assert call.name == "get_weather"
    assert set(json.loads(call.arguments)) == {"city", "days"}

    events = list(ask(client, talk, stream=True, **asked))
    (same,) = events[-1].response.output
    assert (same.name, same.arguments) == (call.name, call.arguments)
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments
    (end,) = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert end.arguments == call.arguments

    result = {"type": "function_call_output", "call_id": call.call_id, "output": "It is sunny."}
    for before in (call, call.model_dump()):  # with fields of the client's that are null
        last = ask(client, [*talk, before, result], tools=[TOOL], max_output_tokens=30)
        assert last.usage.input_tokens > reply.usage.input_tokens + 10
    chosen = ask(client, talk, tools=[TOOL], tool_choice={"type": "function", "name": TOOL["name"]})
    assert chosen.output[0].name == "get_weather"
    none = ask(client, tools=[TOOL], tool_choice="none")
    assert none.output[0].type == "message"


class Person(BaseModel):
    name: str = Field(max_length=8)
    age: int = Field(ge=0, le=150)


def test_a_schema(client):
    parsed = client.responses.parse(
        model="demo", input="Describe someone.", text_format=Person, temperature=0
    )
    assert isinstance(parsed.output_parsed, Person)
    given = ask(client, text={"format": {"type": "json_object"}}, max_output_tokens=400)
    assert given.text.format.type == "json_object"
    with client.responses.stream(
        model="demo", input="Describe someone.", text_format=Person, temperature=0
    ) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client, stream):
    reply = ask(client, top_logprobs=2, include=["message.output_text.logprobs"], stream=stream)
    if stream:
        events = list(reply)
        deltas = [e for e in events if e.type == "response.output_text.delta"]
        told = [entry.token for event in deltas for entry in event.logprobs]
        reply = events[-1].response
        assert told == [entry.token for entry in reply.output[0].content[0].logprobs]
    logprobs = reply.output[0].content[0].logprobs
    assert len(logprobs) == 13
    assert "".join(entry.token for entry in logprobs).strip() == ANSWER
    assert all(entry.top_logprobs[0].logprob >= entry.logprob for entry in logprobs)
    assert {len(entry.top_logprobs) for entry in logprobs} == {2}


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is kept"),
        ({"conversation": "conv_1"}, "conversation", "nothing is kept"),
        ({"truncation": "auto"}, "truncation", ""),
        ({"background": True}, "background", ""),
        ({"background": 0.0}, "background", "boolean"),
        ({"tools": [{"type": "web_search"}]}, "tools.0", "functions alone"),
        ({"input": []}, "input", ""),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", ""),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input.0.content.0.type", "input_text"),
        ({"include": ["web_search_call.results"]}, "include.0", ""),
        ({"max_output_tokens": 0}, "max_output_tokens", ""),
        ({"nonsense": 1}, "nonsense", "unknown"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "b"}]},
         "input.0.arguments", ""),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_what_is_not_done_is_refused(refused, more, param, words):
    error = refused(400, {"input": "a", "max_output_tokens": 2, **more}, "/v1/responses")
    assert error["param"] == param
    assert words in error["message"]


def test_another_model_is_not_there(client):
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt-5", input="a")


def test_reasoning_of_others_is_left_out(client):
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "xyz"}
    talk = [{"role": "user", "content": QUESTION}]
    reply = ask(client, [thought, *talk], store=False, reasoning={"effort": "low"})
    assert reply.usage.input_tokens == 8
