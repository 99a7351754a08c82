"""The server as OpenAI's own client sees it, with every reply checked against its types."""

from __future__ import annotations

import base64
import json
from typing import Annotated

import numpy as np
import openai
import pytest
from pydantic import BaseModel, Field
from served import ANSWER, user

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 30},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def ask(client, text="What is a violin?", **more):
    return client.chat.completions.create(
        model="demo", messages=user(text), **{"temperature": 0, **more}
    )


def test_a_chat(client):
    reply = ask(client)
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert (reply.model, reply.object) == ("demo", "chat.completion")
    usage = reply.usage
    assert usage.prompt_tokens == 8
    assert usage.completion_tokens == 13
    assert usage.total_tokens == 21


def test_a_prediction_makes_it_come_sooner(client):
    """An edit: most of the text is known. It changes nothing but what is counted."""
    text = "Lily had a dog called Dot. The dog went to the school. The dog was lost at the lake."
    ask_for = f"Replace dog by cat in: {text}"
    plain = ask(client, ask_for, max_tokens=60)
    foretold = {"type": "content", "content": text}
    edited = ask(client, ask_for, max_tokens=60, prediction=foretold)
    assert edited.choices[0].message.content == plain.choices[0].message.content
    details = edited.usage.completion_tokens_details
    assert details.accepted_prediction_tokens > 5
    answer = plain.choices[0].message.content
    parts = {"type": "content", "content": [{"type": "text", "text": answer}]}
    known = ask(client, ask_for, max_tokens=60, prediction=parts)
    assert known.choices[0].message.content == answer
    assert known.usage.completion_tokens_details.accepted_prediction_tokens > 45


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"continue_final_message": True}, {"add_generation_prompt": False}]
)
def test_a_message_that_the_assistant_began_is_gone_on_with(client, more, stream):
    """Without repeating it, unlike Mistral's prefix."""
    begun = "A violin is a stringed"
    talk = [*user(), {"role": "assistant", "content": begun}]
    asked = {"model": "demo", "messages": talk, "temperature": 0, "stream": stream}
    reply = client.chat.completions.create(**asked, extra_body=more)
    if stream:
        said = "".join(c.choices[0].delta.content or "" for c in reply if c.choices)
    else:
        said = reply.choices[0].message.content
    assert begun + said == ANSWER


def test_what_cannot_be_gone_on_with_is_refused(refused):
    begun = [*user(), {"role": "assistant", "content": "A violin"}]
    for more in ({"continue_final_message": True}, {"add_generation_prompt": False}):
        refused(400, {"messages": user(), **more})
    for more in ({"continue_final_message": False}, {"add_generation_prompt": True}):
        refused(400, {"messages": begun, **more})


def test_other_programs_spellings(post):
    asked = {"messages": user("Count from 5 to 12."), "temperature": 0}
    plain, none, one, same = (
        post("/v1/chat/completions", asked | more).json()["choices"][0]["message"]["content"]
        for more in (
            {},
            {"max_tokens": -1, "seed": -1, "nonsense": None},
            {"repetition_penalty": 3.0},
            {"repeat_penalty": 3.0},
        )
    )
    assert plain == none
    assert plain != one == same


def test_null_says_nothing(post):
    """Clients send what they know as null."""
    tool = {"type": None, "function": {"name": "f", "strict": None}}
    asked = {"messages": [user("Hi")[0] | {"prefix": None}], "max_tokens": 2, "stream": None,
             "routing": None, "nonsense": None, "tools": [tool], "tool_choice": "none"}  # fmt: skip
    assert post("/v1/chat/completions", asked).status_code == 200
    error = post("/v1/chat/completions", {"messages": None}).json()["error"]
    assert error["param"] == "messages"


@pytest.mark.parametrize("name", ["demo:latest", "mixtral:latest"])
def test_a_name_as_ollama_lists_it(client, name):
    assert client.models.retrieve(name).id == "demo"
    assert client.embeddings.create(model=name, input="A dog.", encoding_format="float").data
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("demo:7b")


class City(BaseModel):
    name: Annotated[str, Field(max_length=12)]


def test_what_the_client_parsed_may_be_sent_back(client):
    """Its helpers leave what they read in the messages."""
    asked = {"model": "demo", "temperature": 0, "max_tokens": 200}
    tool = openai.pydantic_function_tool(City)
    called = client.chat.completions.parse(
        messages=user("Weather in Rome?"), tools=[tool], tool_choice="required",
        parallel_tool_calls=False, **asked,
    ).choices[0].message  # fmt: skip
    assert called.tool_calls[0].function.parsed_arguments.name
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "sunny"}
    talk = [*user("Weather in Rome?"), called.model_dump() | {"parsed": {"a": 1}}, result]
    assert client.chat.completions.create(messages=talk, **asked).choices
    answer = client.responses.parse(
        model="demo", input="Who?", text_format=City, temperature=0, max_output_tokens=200
    )
    again = [{"role": "user", "content": "Who?"}, *(item.model_dump() for item in answer.output)]
    assert again[1]["content"][0]["parsed"]
    assert client.responses.create(model="demo", input=again, max_output_tokens=2).output


def test_a_schema_that_nothing_keeps_to_is_the_requests_fault(refused, server):
    endless = {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": endless}}
    error = refused(400, {"messages": user(), "response_format": form})
    assert "cannot be kept to" in error["message"]
    lines = server.log.read_text().splitlines()
    assert [json.loads(line) for line in lines if "grammar failed" in line]


def test_pictures_are_refused_in_words(refused):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    content = [{"type": "text", "text": "What is it?"}, picture]
    error = refused(400, {"messages": [{"role": "user", "content": content}]})
    assert error["param"] == "messages.0.content.1.type"
    assert "no images" in error["message"]


def test_streamed_it_is_the_same(client):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == ANSWER
    assert len([text for text in texts if text]) > 5
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert not chunks[-1].choices
    assert chunks[-1].usage.completion_tokens == 13
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all("usage" in chunk.model_fields_set for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


def test_without_stream_options_the_last_chunk_tells_the_usage(client):
    """As Mistral's do, and Mistral's client has no way to ask for it."""
    chunks = list(ask(client, stream=True))
    assert chunks[-1].usage.completion_tokens == 13
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    silent = ask(client, stream=True, stream_options={"include_usage": False})
    assert all(chunk.usage is None for chunk in silent)


def test_stop_ends_an_answer_before_the_text(client):
    reply = ask(client, stop=[" that is", "never"])
    assert reply.choices[0].message.content == "A violin is a stringed instrument"
    assert reply.choices[0].finish_reason == "stop"


def test_a_stop_text_in_the_middle_of_tokens(client):
    """mlx-lm compares tokens, and misses it."""
    streamed = ask(client, stop="inged ins", stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert said == "A violin is a str"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens(client, name):
    reply = ask(client, **{name: 3})
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 3
    assert reply.choices[0].message.content == "A violin is"


def test_a_seed_repeats_an_answer(client):
    hot = {"temperature": 1.5, "max_tokens": 30}
    once, twice, other = (
        ask(client, "Tell me a story.", seed=seed, **hot).choices[0].message.content
        for seed in (7, 7, 8)
    )
    assert once == twice != other


def test_several_answers_have_seeds_of_their_own(client):
    asked = {"temperature": 1.5, "max_tokens": 20, "seed": 7}
    alone = ask(client, "Tell me a story.", **asked)
    reply = ask(client, "Tell me a story.", n=3, **asked)
    texts = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts[0] == alone.choices[0].message.content
    assert reply.usage.prompt_tokens == alone.usage.prompt_tokens
    assert reply.usage.completion_tokens > alone.usage.completion_tokens


def test_several_answers_streamed(client):
    told = {"temperature": 1.5, "max_tokens": 20, "seed": 7, "n": 3}
    whole = ask(client, "Tell me a story.", **told)
    texts = {0: "", 1: "", 2: ""}
    for chunk in ask(client, "Tell me a story.", stream=True, **told):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(texts.values()) == [choice.message.content for choice in whole.choices]


def test_logprobs(client):
    reply = ask(client, logprobs=True, top_logprobs=3, max_tokens=4)
    tokens = reply.choices[0].logprobs.content
    assert [t.token for t in tokens] == [" A", " violin", " is", " a"]
    for told in tokens:
        assert bytes(told.bytes).decode() == told.token
        assert told.top_logprobs[0].token == told.token  # greedy
        assert told.top_logprobs[0].logprob == pytest.approx(told.logprob, abs=1e-5)
        assert sum(np.exp([t.logprob for t in told.top_logprobs])) <= 1 + 1e-5
    streamed = ask(client, logprobs=True, top_logprobs=0, max_tokens=4, stream=True)
    chosen = [
        token
        for chunk in streamed
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [t.token for t in chosen] == [t.token for t in tokens]
    assert [t.logprob for t in chosen] == pytest.approx([t.logprob for t in tokens], abs=1e-4)


def test_logit_bias(client):
    violin = ask(client, logprobs=True, max_tokens=2)
    ids = client.post("/tokenize", body={"text": "violin"}, cast_to=object)["tokens"]
    reply = ask(client, logit_bias={str(ids[0]): -100}, max_tokens=2)
    assert reply.choices[0].message.content != violin.choices[0].message.content


@pytest.mark.parametrize(
    "settings",
    [
        {"top_p": 0.5},
        {"presence_penalty": 2, "frequency_penalty": 1.5},
        {"extra_body": {"top_k": 3, "min_p": 0.1}},
        {"extra_body": {"repetition_penalty": 1.3}},
    ],
    ids=str,
)
def test_other_settings_count(client, settings):
    """With the same seed, each of them changes what is said."""
    text, plain = "Tell me a story.", {"temperature": 1.5, "seed": 3, "max_tokens": 60}
    without = ask(client, text, **plain).choices[0].message.content
    assert ask(client, text, **plain, **settings).choices[0].message.content != without


def test_json_object(client):
    form = {"type": "json_object"}
    reply = ask(client, "A dog", response_format=form, max_tokens=400, temperature=1, seed=1)
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content), dict)
    assert reply.choices[0].message.content.lstrip().startswith("{")


def test_json_schema(client):
    form = {
        "type": "json_schema",
        "json_schema": {"name": "person", "strict": True, "schema": PERSON},
    }
    reply = ask(client, "Who are you?", response_format=form, max_tokens=100)
    told = json.loads(reply.choices[0].message.content)
    assert set(told) == {"name", "age"}
    assert 0 <= told["age"] <= 150
    assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", WEATHER | {"function": {"name": "get_weather"}}])
def test_a_tool_has_to_be_called(client, choice):
    asked = {"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False}
    reply = ask(client, "Weather in Paris?", **asked)
    choice = reply.choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city", "days"}
    streamed = [c.choices[0] for c in ask(client, "Weather in Paris?", stream=True, **asked)]
    parts = [part for c in streamed for part in c.delta.tool_calls or []]
    assert parts[0].function.name == "get_weather"
    assert len(parts[0].id) == 9
    assert "".join(part.function.arguments for part in parts) == call.function.arguments
    assert len(parts) > 5  # as it is written, not all at the end
    assert streamed[-1].finish_reason == "tool_calls"
    assert not any(c.delta.content for c in streamed)


def test_several_calls_in_one_answer(client):
    reply = ask(client, "Weather?", tools=[WEATHER], tool_choice="required", max_tokens=200)
    calls = reply.choices[0].message.tool_calls
    assert len(calls) > 1
    assert len({call.id for call in calls}) == len(calls)
    assert all("city" in call.function.arguments for call in calls)


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_tool_need_not_be_called(client, choice):
    reply = ask(client, "What is a violin?", tools=[WEATHER], tool_choice=choice, max_tokens=60)
    assert reply.choices[0].message.tool_calls is None
    assert reply.choices[0].message.content


def test_the_results_of_calls_go_back(client):
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris", "days": 1}'},
    }
    messages = [
        *user("Weather in Paris?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    reply = client.chat.completions.create(
        model="demo", messages=messages, tools=[WEATHER], max_tokens=40
    )
    assert reply.usage.prompt_tokens > 50


def test_completions(client):
    reply = client.completions.create(model="demo", prompt="A violin is", temperature=0)
    assert reply.choices[0].text.startswith(" a stringed instrument")
    assert reply.usage.completion_tokens <= 16  # OpenAI's default
    # Strict, the client would miss a finish_reason in chunks, which OpenAI's have not either.
    streamed = client.copy().completions.create(
        model="demo", prompt="A violin is", temperature=0, stream=True
    )
    assert "".join(c.choices[0].text for c in streamed) == reply.choices[0].text


def test_completions_of_several_prompts(client):
    reply = client.completions.create(
        model="demo", prompt=["A violin is", "A dog is"], n=2, temperature=0, max_tokens=4
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.choices[0].text == reply.choices[1].text != reply.choices[2].text
    assert reply.usage.prompt_tokens == 8


def test_completions_of_ids_with_logprobs(client):
    ids = client.post("/tokenize", body={"text": "A violin is", "bos": True}, cast_to=object)
    reply = client.completions.create(
        model="demo", prompt=ids["tokens"], temperature=0, max_tokens=5, logprobs=2
    )
    told = reply.choices[0].logprobs
    assert "".join(told.tokens) == reply.choices[0].text
    assert told.text_offset[1] == len(told.tokens[0])
    assert all(len(top) == 2 for top in told.top_logprobs)


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings(client, form):
    texts = ["A violin is an instrument.", "A cello is an instrument.", "What is 2 + 2?"]
    strict = client if form == "float" else client.copy()  # its type knows lists only
    reply = strict.embeddings.create(model="demo", input=texts, encoding_format=form)
    vectors = [vector.embedding for vector in reply.data]
    if form == "base64":
        vectors = [np.frombuffer(base64.b64decode(v), "<f4") for v in vectors]
    vectors = np.array(vectors)
    assert vectors.shape == (3, 256)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > likeness[0, 2]
    assert reply.usage.prompt_tokens > 15


def test_the_default_form_of_embeddings(client):
    one = client.copy().embeddings.create(model="demo", input="A violin")  # base64
    two = client.embeddings.create(
        model="demo", input="A violin", encoding_format="float", dimensions=256
    )
    assert one.data[0].embedding == pytest.approx(two.data[0].embedding, abs=1e-6)


@pytest.mark.parametrize("ids", [[64, 5679], [[64, 5679]]])
def test_ids_of_other_vocabularies_are_not_taken_for_ours(refused, ids):
    """LangChain's OpenAIEmbeddings sends such, unless it is told not to."""
    error = refused(400, {"input": ids}, "/v1/embeddings")
    assert "check_embedding_ctx_length" in error["message"]
    assert error["param"] == "input"


@pytest.mark.parametrize("name", ["dimensions", "output_dimension"])
def test_vectors_have_the_models_size(refused, post, name):
    assert "256" in refused(400, {"input": "a", name: 64}, "/v1/embeddings")["message"]
    assert post("/v1/embeddings", {"input": "a", name: 256}).status_code == 200


def test_what_other_models_do_with_it_is_taken(post):
    talk = [*user(), {"role": "assistant", "content": "No.", "reasoning_content": "Hm."}, *user()]
    talk[-1]["content"] = [{"type": "text", "text": "Why?", "cache_control": {"type": "ephemeral"}}]
    asked = {"messages": talk, "max_tokens": 2}
    asked |= {"reasoning_effort": "high", "verbosity": "low", "store": True}
    assert post("/v1/chat/completions", asked).status_code == 200


def test_a_prompt_that_is_too_long_is_told_in_words_that_programs_know(refused):
    error = refused(400, {"messages": user("word " * 3000)})
    assert error["code"] == "context_length_exceeded"
    assert "this model's maximum context length is 2048 tokens" in error["message"]  # litellm
    assert "context length exceeded" in error["message"]  # Continue
    error = refused(400, {"messages": user("word " * 300_000)})
    assert "this model's maximum context length is 2048 tokens" in error["message"]


def test_models(client):
    (model,) = client.models.list()
    assert (model.id, model.object) == ("demo", "model")
    assert client.models.retrieve("open-mixtral-8x7b").id == "demo"
    assert model.max_context_length == 2048


@pytest.mark.parametrize("name", ["mixtral", "mistral-small", "open-mixtral-8x7b"])
def test_aliases_mean_the_loaded_model(client, name):
    reply = client.chat.completions.create(model=name, messages=user(), max_tokens=1)
    assert reply.model == "demo"


def test_errors_are_of_the_types_that_the_client_knows(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4o", messages=user())
    assert unknown.value.code == "model_not_found"
    assert unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="demo", messages=user(), temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as new:
        ask(client, extra_body={"nonsense": 1})
    assert new.value.code == "unknown_parameter"
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, "word " * 3000)
    assert long.value.code == "context_length_exceeded"


def test_routing_tells_the_experts_of_every_layer(client):
    asked = {"max_tokens": 5, "extra_body": {"routing": True}}
    reply = ask(client, **asked)
    routing = reply.choices[0].routing
    assert np.shape(routing) == (5, 4, 2)
    assert 0 <= np.min(routing) <= np.max(routing) < 8
    chunks = [c.choices[0] for c in ask(client, stream=True, **asked)]
    streamed = [token for c in chunks for token in getattr(c, "routing", [])]
    assert streamed == routing
