"""What two servers make of requests that servers get: this one, and mlx-lm's.

    python examples/server/compare.py

Both serve the demo model, one after the other. Some of the requests break mlx-lm's server for
good; it is started anew for each. Takes some minutes.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse
from typing import Any

from load import Server, ours, theirs

QUESTION = [{"role": "user", "content": "What is a violin?"}]
STORY = {
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "max_tokens": 300,
    "temperature": 1,
    "logit_bias": {"2": -100},
}


def ask(server: Server, body: dict[str, Any], path: str = "/v1/chat/completions") -> HTTPResponse:
    """A reply, or TimeoutError after 20 seconds."""
    wire = HTTPConnection("127.0.0.1", server.port, timeout=20)
    wire.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return wire.getresponse()


def status(server: Server, body: dict[str, Any], path: str = "/v1/chat/completions") -> str:
    try:
        reply = ask(server, body, path)
        reply.read()
        return str(reply.status)
    except TimeoutError:
        return "no answer"
    except ConnectionError:
        return "connection broken"


def text(server: Server, body: dict[str, Any]) -> str:
    try:
        told = json.loads(ask(server, body).read())
        return str(told["choices"][0]["message"]["content"])
    except (TimeoutError, ConnectionError, ValueError, KeyError):
        return ""


def good(server: Server) -> str:
    """Whether a good request is answered."""
    return "works" if text(server, {"messages": QUESTION, "max_tokens": 5}) else "broken"


def stop_that_is_a_number(server: Server) -> str:
    return f"{status(server, {'messages': QUESTION, 'stop': 5})}, then {good(server)}"


def model_that_is_not_there(server: Server) -> str:
    told = status(server, {"messages": QUESTION, "model": "no/such-model"})
    return f"{told}, then {good(server)}"


def temperature_in_words(server: Server) -> str:
    return f"{status(server, {'messages': QUESTION, 'temperature': 'hot'})}, then {good(server)}"


def stop_inside_of_words(server: Server) -> str:
    asked = {"messages": QUESTION, "temperature": 0, "max_tokens": 40, "stop": ["inged ins"]}
    return repr(text(server, asked))


def schema(server: Server) -> str:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["a", "b"]}}}
    asked = {"messages": QUESTION, "response_format": form, "max_tokens": 20, "temperature": 0}
    return repr(text(server, asked))


def unknown_field(server: Server) -> str:
    return status(server, {"messages": QUESTION, "grammar": "root ::= x", "max_tokens": 5})


def embeddings(server: Server) -> str:
    return status(server, {"input": "A violin"}, "/v1/embeddings")


def metrics(server: Server) -> str:
    wire = HTTPConnection("127.0.0.1", server.port, timeout=20)
    wire.request("GET", "/metrics")
    return str(wire.getresponse().status)


def other_origins(server: Server) -> str:
    wire = HTTPConnection("127.0.0.1", server.port, timeout=20)
    wire.request("GET", "/v1/models", headers={"Origin": "https://evil.example"})
    reply = wire.getresponse()
    allowed = reply.getheader("Access-Control-Allow-Origin")
    return f"{reply.status}, allowed: {allowed}"


def other_host(server: Server) -> str:
    wire = HTTPConnection("127.0.0.1", server.port, timeout=20)
    wire.request("GET", "/v1/models", headers={"Host": "rebound.example"})
    return str(wire.getresponse().status)


def client_that_leaves(server: Server) -> str:
    """The time of a short answer while a long one that nobody waits for may still go on."""
    begun = time.monotonic()
    good(server)
    usual = time.monotonic() - begun
    body = json.dumps({**STORY, "max_tokens": 400, "n": 1}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", server.port)) as wire:
            wire.sendall(head + body)
            time.sleep(0.3)
    begun = time.monotonic()
    good(server)
    return f"the next one takes {time.monotonic() - begun:.1f} s (usually {usual:.1f} s)"


def sigterm(server: Server) -> str:
    """What becomes of an answer under way."""
    wire = HTTPConnection("127.0.0.1", server.port, timeout=60)
    asked = {**STORY, "stream": True, "max_tokens": 100}
    wire.request(
        "POST", "/v1/chat/completions", json.dumps(asked), {"Content-Type": "application/json"}
    )
    reply = wire.getresponse()
    reply.readline()
    server.process.send_signal(signal.SIGTERM)
    try:
        ended = "whole" if b"[DONE]" in reply.read() else "cut"
    except (ConnectionError, TimeoutError, OSError):
        ended = "cut"
    return f"{ended}, exit code {server.process.wait(30)}"


TRIALS: dict[str, Callable[[Server], str]] = {
    "stop: 5": stop_that_is_a_number,
    "a model that is not there": model_that_is_not_there,
    "temperature: 'hot'": temperature_in_words,
    "stop: 'inged ins'": stop_inside_of_words,
    "a JSON schema": schema,
    "an unknown field": unknown_field,
    "/v1/embeddings": embeddings,
    "/metrics": metrics,
    "a page of another site": other_origins,
    "a foreign Host": other_host,
    "clients that leave": client_that_leaves,
    "SIGTERM in an answer": sigterm,
}


def wait(server: Server) -> None:
    for _ in range(300):
        with suppress(OSError):
            if good(server) == "works":
                return
        time.sleep(0.3)
    raise SystemExit(f"{server.name} did not start")


def main() -> None:
    print(f"{'':26} {'mixtral-mlx':58} mlx_lm.server")
    for name, trial in TRIALS.items():
        told = []
        for start in (ours, theirs):
            server = start("demo")
            try:
                wait(server)
                told.append(trial(server))
            finally:
                server.stop()
        print(f"{name:26} {told[0]:58} {told[1]}", flush=True)


if __name__ == "__main__":
    main()
