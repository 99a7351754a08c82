"""The server as Mistral's own client sees it; it checks every reply against its types."""

from __future__ import annotations

import json

import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError
from served import ANSWER, user
from test_server_openai import PERSON, WEATHER


@pytest.fixture(scope="module")
def mistral(server):
    with Mistral(api_key="none", server_url=server.url, timeout_ms=60_000) as client:
        yield client


def ask(mistral, text="What is a violin?", **more):
    asked = {"model": "open-mixtral-8x7b", "temperature": 0, **more}
    return mistral.chat.complete(messages=user(text), **asked)


def test_a_chat(mistral):
    reply = ask(mistral)
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == 21


def test_a_stream(mistral):
    with mistral.chat.stream(model="mistral-small", messages=user(), temperature=0) as events:
        chunks = [event.data for event in events]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].usage.completion_tokens == 13


def test_random_seed(mistral):
    asked = {"temperature": 1.4, "max_tokens": 20}
    first, same, other = (
        ask(mistral, "Tell me a story.", random_seed=seed, **asked).choices[0].message.content
        for seed in (1, 1, 2)
    )
    assert first == same != other


@pytest.mark.parametrize("model", ["demo", "mistral-small"])
def test_calls_are_streamed_whole(mistral, model):
    """The client can read no parts of them."""
    asked = {"tools": [WEATHER], "tool_choice": "any", "max_tokens": 120, "temperature": 0}
    talk = user("Weather in Rome and Paris?")
    with mistral.chat.stream(model=model, messages=talk, **asked) as events:
        deltas = [event.data.choices[0].delta for event in events if event.data.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert calls
    whole = mistral.chat.complete(model=model, messages=talk, **asked).choices[0].message
    assert [call.function.arguments for call in calls] == [
        call.function.arguments for call in whole.tool_calls
    ]
    assert [call.function.name for call in calls] == ["get_weather"] * len(calls)
    assert len({call.id for call in calls}) == len(calls)


def test_a_prediction_comes_true(mistral):
    reply = ask(mistral, prediction={"type": "content", "content": ANSWER})
    assert reply.choices[0].message.content == ANSWER
    told = reply.usage.model_dump()["completion_tokens_details"]
    assert told["accepted_prediction_tokens"] >= 9  # of 13, of which a pass gives one anyhow


def test_a_prefix_is_gone_on_with(mistral):
    prefix = "A violin is a stringed"
    messages = [*user(), {"role": "assistant", "content": prefix, "prefix": True}]
    reply = mistral.chat.complete(model="demo", messages=messages, temperature=0)
    assert reply.choices[0].message.content == ANSWER  # the prefix included, as Mistral has it
    assert reply.usage.completion_tokens < 13
    with mistral.chat.stream(model="demo", messages=messages, temperature=0) as events:
        said = [event.data.choices[0].delta.content or "" for event in events]
    assert "".join(said) == ANSWER


def test_a_schema(mistral):
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    reply = ask(mistral, "Who are you?", response_format=form, max_tokens=100)
    assert set(json.loads(reply.choices[0].message.content)) == {"name", "age"}


@pytest.mark.parametrize("choice", ["any", "required"])
def test_tools(mistral, choice):
    asked = {"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False}
    reply = ask(mistral, "Weather in Paris?", **asked)
    (call,) = reply.choices[0].message.tool_calls
    assert reply.choices[0].finish_reason == "tool_calls"
    assert set(json.loads(call.function.arguments)) == {"city", "days"}
    messages = [
        *user("Weather in Paris?"),
        reply.choices[0].message,
        {"role": "tool", "name": "get_weather", "tool_call_id": call.id, "content": "sunny"},
    ]
    told = mistral.chat.complete(model="demo", messages=messages, max_tokens=20, tools=[WEATHER])
    assert told.usage.prompt_tokens > 50


def test_embeddings(mistral):
    reply = mistral.embeddings.create(model="demo", inputs=["one", "two"])
    assert [len(vector.embedding) for vector in reply.data] == [256, 256]


def test_model_cards(mistral):
    (card,) = mistral.models.list().data
    assert card.id == "demo"
    assert card.capabilities.completion_chat
    assert card.capabilities.function_calling
    assert card.max_context_length == 2048
    assert "open-mixtral-8x7b" in card.aliases
    assert mistral.models.retrieve(model_id="mistral-small").id == "demo"


def test_errors(mistral):
    with pytest.raises(SDKError) as unknown:
        ask(mistral, model="mistral-large-latest")
    assert unknown.value.status_code == 404
    with pytest.raises(SDKError) as wrong:
        ask(mistral, safe_prompt=True)
    assert "safe_prompt" in wrong.value.body
