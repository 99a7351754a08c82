"""The server as Ollama's own client sees it; it checks replies against its types."""

from __future__ import annotations

import json
import math

import httpx2
import ollama
import pytest
from jsonschema import validate
from ollama import ResponseError
from served import ANSWER, QUESTION, user
from test_server_openai import PERSON

from mlx_mixtral.server.ollama.request import OllamaChatRequest


@pytest.fixture(scope="module")
def client(server):
    return ollama.Client(host=server.url)


def ask(client, text=QUESTION, options=None, **more):
    return client.chat("demo", user(text), options={"temperature": 0, **(options or {})}, **more)


def test_a_chat(client):
    reply = ask(client)
    assert (reply.message.role, reply.message.content) == ("assistant", ANSWER)
    assert (reply.done, reply.done_reason) == (True, "stop")
    assert (reply.prompt_eval_count, reply.eval_count) == (8, 13)
    spent = reply.prompt_eval_duration + reply.eval_duration
    assert 0 < spent <= reply.total_duration < 60e9


def test_a_stream(client):
    lines = list(ask(client, stream=True))
    assert "".join(line.message.content for line in lines) == ANSWER
    assert len(lines) > 8
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1].eval_count == 13


def test_a_stream_is_what_comes_unless_it_is_forbidden(server):
    asked = {"model": "demo", "messages": user(), "options": {"num_predict": 3}}
    reply = httpx2.post(f"{server.url}/api/chat", json=asked)
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert len(reply.text.splitlines()) > 2
    reply = httpx2.post(f"{server.url}/api/chat", json=asked | {"stream": False})
    assert reply.json()["done_reason"] == "length"


def test_the_model_has_any_tag(client):
    for name in ("demo:latest", "mistral-small:22b", "open-mixtral-8x7b"):
        assert client.chat(name, user(), options={"temperature": 0}).message.content == ANSWER
    with pytest.raises(ResponseError) as refused:
        client.chat("llama3:latest", user())
    assert refused.value.status_code == 404
    assert "no model" in refused.value.error


def test_generating(client, post):
    reply = client.generate("demo", QUESTION, options={"temperature": 0})
    assert reply.response == ANSWER
    told = client.generate("demo", QUESTION, system="Be brief.", options={"num_predict": 2})
    assert told.prompt_eval_count > reply.prompt_eval_count
    raw = client.generate(
        "demo", "Once upon", raw=True, options={"temperature": 0, "num_predict": 5}
    )
    plain = {"prompt": "Once upon", "max_tokens": 5, "temperature": 0}
    assert raw.response == post("/v1/completions", plain).json()["choices"][0]["text"]
    lines = list(client.generate("demo", QUESTION, stream=True, options={"temperature": 0}))
    assert "".join(line.response for line in lines) == ANSWER


def test_settings_are_honoured(client):
    story = "Tell me a story."
    drawn = [
        ask(client, story, {"temperature": 1.4, "seed": s, "num_predict": 20}) for s in (1, 1, 2)
    ]
    first, same, other = (reply.message.content for reply in drawn)
    assert first == same != other
    assert ask(client, options={"stop": ["inged"]}).message.content == "A violin is a str"
    assert ask(client, options={"num_predict": -1, "num_ctx": 2048}).message.content == ANSWER
    said = ask(client, "Count from 5 to 12.").message.content
    options = {"repeat_penalty": 3.0, "repeat_last_n": 64}
    assert ask(client, "Count from 5 to 12.", options).message.content != said
    options["repeat_last_n"] = 0
    assert ask(client, "Count from 5 to 12.", options).message.content == said


def test_a_schema(client):
    reply = ask(client, "Describe someone.", format=PERSON)
    validate(json.loads(reply.message.content), PERSON)
    reply = client.generate("demo", "x", format=PERSON)
    validate(json.loads(reply.response), PERSON)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client, stream):
    reply = ask(client, logprobs=True, top_logprobs=2, stream=stream)
    lines = list(reply) if stream else [reply]
    told = [entry for line in lines for entry in line.logprobs or ()]
    assert "".join(entry.token for entry in told).strip() == ANSWER
    assert all(len(entry.top_logprobs) == 2 for entry in told)
    assert all(entry.top_logprobs[0].logprob >= entry.logprob for entry in told)


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name
    """
    return f"sunny in {city}"


@pytest.mark.parametrize("stream", [False, True])
def test_calls_have_their_form(stream):
    """Ollama's client cannot demand a call, and the demo makes none by itself."""
    from mlx_mixtral.server.answers import Answer, Part
    from mlx_mixtral.server.jobs import Done
    from mlx_mixtral.server.ollama.reply import OllamaReply
    from mlx_mixtral.server.tools import CallPart

    reply = OllamaReply("demo", None, chat=True, logprobs=False)  # type: ignore[arg-type]
    parts = [
        Part(calls=(CallPart(0, "", "weather", "abc123def"), CallPart(0, '{"city": '))),
        Part(calls=(CallPart(0, '"Rome"}'), CallPart(1, "{}", "other", "abc123deg"))),
        Part(reason="tool_calls", done=Done("stop", prompt_tokens=3, completion_tokens=9)),
    ]
    if stream:
        lines = [reply.chunk(0, part, None) for part in parts] + [reply.end(None)]
        told = [json.loads(line) for line in lines if line]
        calls = [call for line in told for call in line["message"].get("tool_calls", ())]
        assert told[-1]["done"]
        assert told[-1]["done_reason"] == "stop"
    else:
        answer = Answer()
        for part in parts:
            answer.add(part)
        calls = reply.whole([answer], None)["message"]["tool_calls"]  # type: ignore[arg-type]
    assert [call["function"] for call in calls] == [
        {"index": 0, "name": "weather", "arguments": {"city": "Rome"}},
        {"index": 1, "name": "other", "arguments": {}},
    ]


def test_functions_and_their_results_reach_the_model(client, post):
    talk = [
        *user("How is the weather?"),
        {"role": "assistant", "tool_calls": [
            {"function": {"name": "weather", "arguments": {"city": "Rome"}}}]},
        {"role": "tool", "tool_name": "weather", "content": "sunny in Rome"},
    ]  # fmt: skip
    reply = client.chat("demo", talk, tools=[weather], options={"num_predict": 2})
    without = client.chat("demo", talk[:1], tools=[weather], options={"num_predict": 2})
    assert reply.prompt_eval_count > without.prompt_eval_count + 15
    assert without.prompt_eval_count > 100


def test_results_find_their_calls():
    """Without ids, which Ollama's clients do not tell: by name, then in order."""
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("a", "b", "a")]
    results = [{"role": "tool", "content": str(n), "tool_name": t} for n, t in enumerate("baa")]
    asked = OllamaChatRequest.model_validate(
        {
            "model": "x",
            "messages": [*user("?"), {"role": "assistant", "tool_calls": calls}, *results],
        }
    )
    messages = asked.as_chat().messages
    ids = [call.id for call in messages[1].tool_calls]
    assert [message.tool_call_id for message in messages[2:]] == [ids[1], ids[0], ids[2]]
    assert [message.name for message in messages[2:]] == ["b", "a", "a"]
    assert all(len(call_id) == 9 and call_id.isalnum() for call_id in ids)


@pytest.mark.parametrize("names", [(), ("a", "b"), ("b", "a")])
def test_results_without_ids_are_taken_in_turn(client, names):
    """LangChain's lose their ids on the way, and Open WebUI's calls have an index."""
    calls = [
        {"index": n, "function": {"name": name, "arguments": {}}} for n, name in enumerate("ab")
    ]
    results = [{"role": "tool", "content": name} for name in "xy"]
    for result, name in zip(results, names, strict=False):
        result["name"] = name
    talk = [*user("?"), {"role": "assistant", "content": "", "tool_calls": calls}, *results]
    asked = {"model": "demo", "stream": False, "messages": talk, "options": {"num_predict": 2.0}}
    reply = client._client.post("/api/chat", json=asked)
    assert reply.json()["eval_count"] == 2
    messages = OllamaChatRequest.model_validate(asked).as_chat().messages
    assert [message.name for message in messages[2:]] == list(names or "ab")


def test_a_schema_is_kept_to_as_far_as_that_can_be(client):
    """This API has no word for what is to be done otherwise."""
    flags = {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}
    path = {"type": "string", "format": "path", "maxLength": 9}
    odd = {"type": "object", "properties": {"a": flags | {"uniqueItems": True}, "b": path}}
    text = ask(client, format=odd).message.content
    validate(json.loads(text), {"type": "object", "properties": {"a": flags, "b": path}})


def test_a_body_as_curl_sends_it(server):
    """Ollama's examples do not say that it is JSON. A page in a browser has to."""
    asked, url = json.dumps({"model": "demo", "prompt": "Hi", "stream": False}), "/api/generate"
    kind = {"content-type": "application/x-www-form-urlencoded"}
    for headers in ({}, kind):
        reply = httpx2.post(server.url + url, content=asked, headers=headers)
        assert reply.json()["done"]
    for mark in ({"origin": server.url}, {"sec-fetch-site": "same-origin"}):
        assert httpx2.post(server.url + url, content=asked, headers=kind | mark).status_code == 415


def test_embeddings(client, post):
    texts = ["A dog.", "A cat and a dog."]
    vectors = client.embed("demo", texts).embeddings
    plain = post("/v1/embeddings", {"input": texts}).json()["data"]
    assert vectors == [entry["embedding"] for entry in plain]
    assert all(math.hypot(*vector) == pytest.approx(1, abs=1e-5) for vector in vectors)
    older = client.embeddings("demo", texts[0]).embedding
    assert older == pytest.approx(vectors[0], abs=1e-6)
    assert client.embed("demo", "word " * 5000).prompt_eval_count == 2047
    assert client.embed("demo", []).embeddings == []
    assert len(client.embed("demo", ["A dog."] * 300).embeddings) == 300
    with pytest.raises(ResponseError):
        client.embed("demo", "word " * 5000, truncate=False)


def test_what_is_told_of_the_model(client, server):
    (model,) = client.list().models
    assert model.model == "demo:latest"
    assert model.size == 12_599_280
    assert len(model.digest) == 64
    assert (model.details.parameter_size, model.details.quantization_level) == ("15.5M", "6-bit")
    (running,) = client.ps().models
    assert running.context_length == 2048
    shown = client.show(model.model)
    assert shown.modelinfo["mixtral.expert_count"] == 8
    assert shown.capabilities == ["completion", "tools"]
    assert client.chat("demo").done_reason == "load"
    for path in ("", "/api/tags", "/health"):
        reply = httpx2.head(server.url + path)
        assert (reply.status_code, reply.content) == (200, b"")
    assert httpx2.get(f"{server.url}/api/version").json()["version"].count(".") == 2


@pytest.mark.parametrize(
    ("path", "asked", "words"),
    [
        ("chat", {"messages": user(), "options": {"mirostat": 2}}, "mirostat"),
        ("chat", {"messages": user(), "options": {"nonsense": 2}}, "nonsense"),
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "images"),
        ("chat", {"messages": user(), "think": "high"}, "does not support thinking"),
        ("chat", {"messages": user(), "top_logprobs": 2}, "logprobs"),
        ("chat", {"messages": user(), "format": {"$ref": "#/$defs/missing"}}, "missing"),
        ("generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("generate", {"prompt": "x", "raw": True, "format": "json"}, "raw"),
        ("generate", {"prompt": "x", "template": "y"}, "template"),
        ("generate", {"prompt": "word " * 5000}, "2048"),
        ("embed", {"input": [1]}, "input"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_done_is_refused_in_ollamas_form(server, path, asked, words):
    reply = httpx2.post(
        f"{server.url}/api/{path}", json={"model": "demo", "stream": False, **asked}
    )
    assert reply.status_code == 400
    assert words in reply.json()["error"]


def test_other_errors_have_that_form_too(server):
    assert "nothing at" in httpx2.post(f"{server.url}/api/pull", json={}).json()["error"]
    evil = {"origin": "https://evil.example"}
    assert "origin" in httpx2.get(f"{server.url}/api/tags", headers=evil).json()["error"]
