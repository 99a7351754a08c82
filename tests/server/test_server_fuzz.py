"""Requests that nobody should send; after each of them a good one is answered.

``pytest -m fuzz --hypothesis-profile=long`` sends thousands.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket

import httpx2
import pytest
from harness import request, status, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from served import examples, user

GOOD = {"messages": user("Hello"), "max_tokens": 2}
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/tokenize",
         "/v1/detokenize", "/v1/models", "/", "/metrics", "//", "/%00", "/v1/../v1/models",
         "/assets/../app.py", "/v1/models/" + "x" * 500, "/\u00e9"]  # fmt: skip
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
        st.sampled_from([1e400, -1, 2**63, 2**64, "\ud800", "\x00", "x" * 5000, [], {}]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)  # fmt: skip
FIELDS = ["model", "messages", "prompt", "input", "text", "tokens", "stream", "stream_options",
          "n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
          "logit_bias", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice",
          "routing", "presence_penalty", "user", "metadata"]  # fmt: skip


def send(server, raw, seconds=0.3):
    """What comes back to some bytes within a moment; the rest is not waited for."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as wire:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.sendall(raw)
        wire.settimeout(seconds)
        reply = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while part := wire.recv(65536):
                reply += part
                wire.settimeout(seconds if is_whole(reply) else 30)
    return reply


def is_whole(reply):
    """Whether a reply that has begun has come to its end."""
    head, end, rest = reply.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(end) and len(rest) >= (int(length[1]) if length else 0)


def check_well(server, raw, reply):
    """The reply is one of HTTP, with an error object where it is an error; a good request works."""
    if reply:
        code = status(reply)
        assert code < 500, (raw, reply)
        head, _, rest = reply.partition(b"\r\n\r\n")
        assert b"Traceback" not in reply
        if code >= 400 and b"HTTP/1.1" not in rest and not raw.startswith(b"HEAD"):
            assert json.loads(rest)["error"]["message"], (raw, head)
    assert status(send(server, request({"text": "Hello"}, path="/v1/tokenize"), 30)) == 200


@pytest.mark.fuzz
@settings(max_examples=examples(150))
@given(
    path=st.sampled_from(PATHS[:5]),
    base=st.sampled_from([{}, GOOD, {"prompt": "a", "max_tokens": 2}]),
    fields=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=4),
)
def test_bodies_of_any_kind(server, path, base, fields):
    data = json.dumps({**base, **fields}).encode()
    raw = request({}, path=path, Content_Length=str(len(data)))[:-2] + data
    check_well(server, raw, send(server, raw))


def broken(draw: random.Random) -> bytes:
    """A good request that something happened to."""
    raw = bytearray(request(GOOD, path=draw.choice(PATHS).encode().decode("latin-1")))
    for _ in range(draw.randrange(1, 6)):
        at = draw.randrange(len(raw) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            del raw[at : at + draw.randrange(1, 30)]
        elif kind == 1:
            raw[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
        elif kind == 2:
            raw[at:at] = draw.choice([b"\r\n", b"\r\n\r\n", b"\x00", b": ", b"\n", b"\xff\xfe"])
        elif kind == 3:
            raw = raw[: draw.randrange(len(raw) + 1)]
        elif kind == 4:
            method = draw.choice(
                [b"PUT", b"DELETE", b"OPTIONS", b"HEAD", b"TRACE", b"CONNECT", b"X"]
            )
            raw = bytearray(raw.replace(b"POST", method, 1))
        else:
            line = draw.choice([
                b"Transfer-Encoding: chunked", b"Content-Length: -1", b"Content-Length: 5",
                b"Expect: 100-continue", b"Upgrade: websocket\r\nConnection: Upgrade",
                b"Content-Encoding: gzip", b"X: " + b"y" * 40_000, b"Host: other",
                b"Authorization: Bearer \xff", b"Transfer-Encoding: gzip, chunked",
            ])  # fmt: skip
            raw[0:0] = b""
            raw = bytearray(bytes(raw).replace(b"\r\n", b"\r\n" + line + b"\r\n", 1))
    return bytes(raw)


@pytest.mark.fuzz
@settings(max_examples=examples(150))
@given(seed=st.integers(0, 2**32))
def test_bytes_of_any_kind(server, seed):
    raw = broken(random.Random(seed))
    check_well(server, raw, send(server, raw, 0.15))


def test_afterwards_nothing_is_left_over(server):
    assert wait_for(lambda: server.health()["running"] == 0)
    assert server.health()["waiting"] == 0
    assert server.answers()
    figures = httpx2.get(f"{server.url}/metrics").text
    assert 'status="500"' not in figures
    assert "mixtral_engine_restarts_total 0.0" in figures
    assert "Traceback" not in server.log.read_text()
