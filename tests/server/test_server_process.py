"""``mixtral-mlx serve`` as a process: its line, its signals, its exit codes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2
import pytest
from harness import everything, request
from served import ANSWER, serving

STORY = {
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "stream": True,
    "temperature": 2,
    "logit_bias": {"2": -100},  # it does not end by itself
}


def streaming(server, tokens=150):
    """A connection on which an answer has begun to come."""
    wire = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    wire.sendall(request({**STORY, "max_tokens": tokens}))
    begin = b""
    while b'"content": "' not in begin.replace(b'"content": ""', b""):
        begin += wire.recv(4096)
    return wire


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_first_signal_lets_answers_come_to_an_end(number, code):
    with serving() as server:
        with streaming(server) as wire:
            server.process.send_signal(number)
            assert b"[DONE]" in everything(wire)
        assert server.process.wait(60) == code
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_one_does_not(number):
    with serving() as server, streaming(server, 1900):
        server.process.send_signal(number)
        time.sleep(0.2)
        begun = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(60) == 128 + number
        assert time.monotonic() - begun < 5  # the answer would have taken longer


def test_without_work_it_ends_at_once():
    with serving() as server:
        assert server.answers()
        server.process.terminate()
        assert server.process.wait(60) == 0


def test_beginnings_of_prompts_outlast_the_process(tmp_path):
    asked = {
        "messages": [{"role": "user", "content": "Tell me of a dog, a cat, a bird and a lamp."}],
        "max_tokens": 4,
    }
    known = []
    for _ in range(2):
        with serving("--prefix-folder", str(tmp_path / "kept")) as server:
            said = httpx2.post(f"{server.url}/v1/chat/completions", json=asked, timeout=60).json()
            known.append(said["usage"]["prompt_tokens_details"]["cached_tokens"])
            server.process.terminate()
            assert server.process.wait(60) == 0
    assert known == [0, said["usage"]["prompt_tokens"] - 1]


def fails(*arguments):
    """What a server that does not start says."""
    done = subprocess.run(
        [sys.executable, "-m", "mlx_mixtral", "serve", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode, done.stdout
    assert not done.stdout
    assert done.stderr.count("\n") == 1
    return done.returncode, done.stderr


def test_what_it_refuses_to_do(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, told = fails(f"--port={port}")
        assert code == 1
        assert str(port) in told
    assert "API key" in fails("--host=0.0.0.0")[1]
    assert fails("--host=0.0.0.0")[0] == 2
    assert "cannot be read" in fails(f"--api-key-file={tmp_path}/none")[1]
    assert "--log-level" in fails("--log-level=loud")[1]
    assert "cannot listen" in fails("--host=192.0.2.1", "--open")[1]


def test_a_key_from_the_environment_and_further_names():
    options = ("--alias=gpt-*", "--name=mine", "--log-prompts", "--cors=https://app.example")
    with serving(*options, env={"MIXTRAL_MLX_API_KEY": "a long secret"}) as server:
        url = f"{server.url}/v1/chat/completions"
        asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
        assert httpx2.post(url, json=asked).status_code == 401
        key = {"Authorization": "Bearer a long secret", "Origin": "https://app.example"}
        reply = httpx2.post(url, json=asked, headers=key)
        assert reply.json()["model"] == "mine"
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
        server.process.terminate()
        server.process.wait(60)
        (line,) = [line for line in server.lines() if line.get("status") == 200]
        assert line["asked"]["messages"][0]["content"] == "Hello"
        assert "a long secret" not in server.log.read_text()


def test_clients_that_come_together_get_what_they_get_alone(server):
    asked = {"messages": [{"role": "user", "content": "What is a violin?"}], "temperature": 0}
    replies = []

    def ask():
        reply = httpx2.post(f"{server.url}/v1/chat/completions", json=asked, timeout=120)
        replies.append(reply.json()["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == [ANSWER] * 12
