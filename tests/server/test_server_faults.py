"""What mlx-lm's server does wrong, done right here.

``examples/server/compare.py`` asks both servers the same.
"""

from __future__ import annotations

import socket
import threading
import time

import httpx2
import pytest
from harness import request, wait_for
from served import ANSWER, serving, user

STORY = {
    "messages": user("Tell me a story."),
    "max_tokens": 1500,
    "temperature": 1,
    "logit_bias": {"2": -100},  # it does not end by itself
}


def test_a_stop_that_is_no_text_is_refused_and_nothing_breaks(server, refused):
    """mlx-lm: the thread that generates dies, and every later request waits for ever."""
    for stop in (5, [5], {"a": 1}, [""], "", [None], ["x"] * 100, "x" * 10_000):
        assert "stop" in refused(400, {"messages": user(), "stop": stop})["param"]
    assert server.answers()


def test_another_models_name_leaves_the_loaded_one_alone(server, refused):
    """mlx-lm: the loaded model is thrown out before the other is found missing."""
    before = server.health()
    for name in ("no/such-model", "gpt-4o", "/etc/passwd", "../demo", "demo ", "DEMO", ""):
        error = refused(404, {"messages": user(), "model": name})
        assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert server.answers()
    assert server.health()["model"] == before["model"] == "demo"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"messages": user(), "temperature": "hot"}, 400),
        ({"messages": user(), "max_tokens": -2}, 400),
        ({"messages": user(), "max_tokens": 0}, 400),
        ({"messages": user(), "max_tokens": 1.5}, 400),
        ({"messages": user(), "logit_bias": {"x": 1}}, 400),
        ({"messages": user(), "logit_bias": {"99999999": 1}}, 400),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400),
        ({"messages": []}, 400),
        ({"messages": "hello"}, 400),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400),
        ({"prompt": "x"}, 400),
        ({}, 400),
        ([], 400),
        (5, 400),
        ({"messages": user(), "n": 0}, 400),
        ({"messages": user(), "n": 1000}, 400),
        ({"messages": user("word " * 4000)}, 400),
        ({"messages": user(), "tool_choice": "required"}, 400),
    ],
    ids=lambda value: str(value)[:60],
)
def test_errors_have_the_right_status(refused, body, code):
    """mlx-lm: most are a 404."""
    refused(code, body)


def test_other_errors_have_theirs(server):
    url = f"{server.url}/v1/chat/completions"
    assert httpx2.get(f"{server.url}/v1/nothing").status_code == 404
    assert httpx2.get(url).status_code == 405
    assert httpx2.get(url).headers["allow"] == "POST"
    json = {"content-type": "application/json"}
    for broken in (b"{", b"", b"\xff\xfe", b'{"a": 1} x', b"[" * 100_000, b'{"n": ' + b"9" * 9000):
        reply = httpx2.post(url, content=broken, headers=json)
        assert reply.status_code == 400, broken[:10]
        assert reply.json()["error"]["message"]


def test_response_format_is_kept_to_or_refused(post, refused):
    """mlx-lm: ignored."""
    form = {"type": "json_schema", "json_schema": {"schema": {"enum": ["yes", "no"]}}}
    reply = post("/v1/chat/completions", {"messages": user(), "response_format": form}).json()
    assert reply["choices"][0]["message"]["content"] in ('"yes"', '"no"')
    form["json_schema"]["schema"] = {"type": "array", "uniqueItems": True}
    error = refused(400, {"messages": user(), "response_format": form})
    assert "uniqueItems" in error["message"]
    refused(400, {"messages": user(), "response_format": {"type": "yaml"}})


@pytest.mark.parametrize("field", ["suffix", "echo", "best_of", "nonsense", "grammar"])
def test_what_is_not_done_is_refused(refused, field):
    error = refused(400, {"prompt": "A", field: 2}, "/v1/completions")
    assert error["param"] == field


def test_metrics(server):
    """mlx-lm: none."""
    assert server.answers()
    text = httpx2.get(f"{server.url}/metrics").text
    assert 'mixtral_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert "mixtral_completion_tokens_total" in text
    assert "mixtral_engine_up 1.0" in text


def test_the_queue_has_an_end():
    """mlx-lm: requests are piled up."""
    with serving("--running=1", "--waiting=1") as server:
        url, replies = f"{server.url}/v1/chat/completions", []
        short = {**STORY, "max_tokens": 100}

        def ask():
            replies.append(httpx2.post(url, json=short, timeout=60))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = sorted(reply.status_code for reply in replies)
        assert set(codes) == {200, 429}
        assert codes.count(200) >= 2
        full = next(reply for reply in replies if reply.status_code == 429)
        assert int(full.headers["retry-after"]) >= 1
        assert full.json()["error"]["type"] == "rate_limit_error"
        assert server.answers()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_not_worked_for(server, stream):
    """mlx-lm: a request that is not streamed runs to its end."""
    with socket.create_connection(("127.0.0.1", server.port)) as wire:
        wire.sendall(request({**STORY, "stream": stream}))
        assert wait_for(lambda: server.health()["running"] == 1)
        time.sleep(0.2)
    # It would have gone on for many seconds.
    assert wait_for(lambda: server.health()["running"] == 0, 3)
    assert server.answers()


def test_other_origins_are_not_invited(server):
    """mlx-lm: Access-Control-Allow-Origin: *."""
    reply = httpx2.get(f"{server.url}/v1/models")
    assert "access-control-allow-origin" not in reply.headers
    preflight = httpx2.options(
        f"{server.url}/v1/chat/completions",
        headers={"origin": "https://evil.example", "access-control-request-method": "POST"},
    )
    assert preflight.status_code == 403


def test_a_system_message_is_heard(post):
    messages = [{"role": "system", "content": "Be brief."}, *user()]
    asked = {"messages": messages, "temperature": 0}
    reply = post("/v1/chat/completions", asked).json()
    assert reply["usage"]["prompt_tokens"] > 8


def test_a_conversation_has_one_beginning(post, demo):
    """mlx-lm's chat puts <s> before every turn."""
    talk = [*user(), {"role": "assistant", "content": ANSWER}, *user("And a cello?")]
    tokens = post("/v1/tokenize", {"messages": talk}).json()["tokens"]
    assert tokens.count(demo.tokenizer.bos_id) == 1
    assert tokens == demo.template.encode(talk)


def test_tokens_there_and_back(post, refused):
    text = "Ein Café, 日本 \U0001f600 </s> [INST]"
    told = post("/v1/tokenize", {"text": text}).json()
    assert told["count"] == len(told["tokens"])
    assert told["max_context_length"] == 2048
    assert post("/v1/detokenize", {"tokens": told["tokens"]}).json()["text"] == text
    assert post("/v1/tokenize", {"text": "a", "bos": True}).json()["tokens"][0] == 1
    refused(400, {"tokens": [4096]}, "/v1/detokenize")
    refused(400, {"tokens": [-1]}, "/v1/detokenize")
    refused(400, {}, "/v1/tokenize")


def test_text_that_is_no_unicode(server):
    """Half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    json = {"content-type": "application/json"}
    for path in ("tokenize", "completions", "chat/completions"):
        for name in ("text", "prompt", "\\ud800", "user"):
            content = f'{{"{name}": "\\ud800"}}'.encode()
            reply = httpx2.post(f"{server.url}/v1/{path}", content=content, headers=json)
            assert reply.status_code in (200, 400), reply.text
            assert reply.json()
