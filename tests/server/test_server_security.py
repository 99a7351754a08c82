"""Who may talk to the server, and what it does about those who talk badly or slowly."""

from __future__ import annotations

import json
import socket
import time

import pytest
from harness import Here, SaidEngine, body, everything, request, status, wait_for, word

from mlx_mixtral.errors import UsageError
from mlx_mixtral.server.jobs import Busy, Done
from mlx_mixtral.server.settings import Limits, Settings, host_name

SHORT = Limits(
    header_seconds=0.4,
    body_seconds=0.4,
    write_seconds=0.4,
    idle_seconds=1,
    keep_alive_seconds=0.1,
    drain_seconds=5,
    body_bytes=20_000,
    header_bytes=4000,
    headers=30,
    connections=40,
)
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
SAID = [word("Good"), word(" day"), Done("stop", prompt_tokens=3, completion_tokens=2)]


@pytest.fixture
def run(demo):
    """Starts servers in this process, and stops them."""
    started = []

    def run(said=SAID, busy=None, **settings):
        settings = {"limits": SHORT, **settings}
        started.append(Here(demo, SaidEngine(list(said), busy), Settings(**settings)))
        return started[-1]

    yield run
    for here in started:
        here.stop()


# --- names and origins


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]:80", "LocalHost:1"])
def test_it_answers_to_its_own_names(run, host):
    assert status(run().ask(request(HELLO, Host=host))) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "localhost@evil", "[::1", "10.0.0.1"]
)
def test_dns_rebinding_is_refused(run, host):
    reply = run().ask(request(HELLO, Host=host))
    assert status(reply) == 403
    assert body(reply)["error"]["code"] == "host"


def test_two_hosts_are_refused(run):
    raw = request(HELLO).replace(b"Host: localhost", b"Host: localhost\r\nHost: evil.example")
    assert status(run().ask(raw)) in (400, 403)


def test_further_names(run):
    here = run(hosts=("mac.home",))
    assert status(here.ask(request(HELLO, Host="mac.home:8080"))) == 200


def test_compressed_bodies_are_refused_in_words(run):
    reply = run().ask(request(HELLO, Content_Encoding="gzip"))
    assert status(reply) == 415
    assert b"compressed" in reply


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:9999"])
def test_pages_of_others_are_refused(run, origin):
    for path in ("/v1/chat/completions", "/health"):
        reply = run().ask(request(HELLO, path=path, Origin=origin))
        assert status(reply) == 403
        assert b"access-control-allow-origin" not in reply.lower()


def test_its_own_page_is_not_another_origin(run):
    assert status(run().ask(request(HELLO, Origin="http://localhost"))) == 200


def test_cors_for_named_origins(run):
    here = run(origins=("https://app.example",), api_key="a long secret")
    preflight = request(
        None,
        Origin="https://app.example",
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="authorization, content-type",
    ).replace(b"GET", b"OPTIONS")
    reply = here.ask(preflight)
    assert status(reply) == 200
    assert b"access-control-allow-origin: https://app.example" in reply.lower()
    reply = here.ask(
        request(HELLO, Origin="https://app.example", Authorization="Bearer a long secret")
    )
    assert status(reply) == 200
    assert b"access-control-allow-origin: https://app.example" in reply.lower()
    assert status(here.ask(request(HELLO, Origin="https://other.example"))) == 403


def test_a_form_of_a_page_cannot_post(run):
    """Browsers send text/plain across origins without asking."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert status(run().ask(request(HELLO, Content_Type=kind))) == 415


def test_host_names():
    assert host_name("Localhost.:80") == "localhost"
    assert host_name("[::1]") == "::1"
    assert host_name("a:b") is None
    assert host_name("") is None
    assert host_name("[::1]x") is None


# --- keys


def test_elsewhere_needs_a_key_or_a_word():
    with pytest.raises(UsageError, match="API key"):
        Settings(host="0.0.0.0")
    assert not Settings(host="0.0.0.0", api_key="a long secret").on_loopback
    assert Settings(host="0.0.0.0", open_to_all=True).may_be_called("192.168.1.7:8080")
    assert not Settings(host="0.0.0.0", open_to_all=True).may_be_called("evil.example")
    assert Settings(host="::1").on_loopback
    for key in ("", "short", "not ascii: é", "a\nbad key"):
        with pytest.raises(UsageError, match="API key"):
            Settings(api_key=key)
    for origin in ("*", "app.example", "https://*.example", "https://a.example/path", "null"):
        with pytest.raises(UsageError, match="origin"):
            Settings(origins=(origin,))
    assert Settings(origins=("app://obsidian.md", "chrome-extension://abc")).origins


def test_the_key(run):
    here = run(api_key="a long secret")
    for wrong in (
        {},
        {"Authorization": "Bearer x"},
        {"Authorization": "Basic a long secret"},
        {"Authorization": "Bearer a long secret2"},
        {"Authorization": "Bearer é"},
    ):
        reply = here.ask(request(HELLO, **wrong))
        assert status(reply) == 401
        assert body(reply)["error"]["code"] == "invalid_api_key"
        assert b"www-authenticate: bearer" in reply.lower()
    assert status(here.ask(request(HELLO, Authorization="Bearer a long secret"))) == 200
    assert status(here.ask(request(path="/metrics"))) == 401
    assert status(here.ask(request(path="/health"))) == 200
    assert not here.engine.jobs[1:]


# --- limits


def test_bodies_that_are_too_large(run):
    here = run()
    large = {"messages": [{"role": "user", "content": "x" * 30_000}]}
    reply = here.ask(request(large))
    assert status(reply) == 413
    assert body(reply)["error"]["code"] == "body_too_large"
    data = json.dumps(large).encode()
    chunked = request(large, Transfer_Encoding="chunked").partition(b"\r\n\r\n")[0]
    chunked = b"\r\n".join(x for x in chunked.split(b"\r\n") if b"Content-Length" not in x)
    raw = chunked + b"\r\n\r\n%x\r\n" % len(data) + data + b"\r\n0\r\n\r\n"
    assert status(here.ask(raw)) == 413
    assert status(here.ask(request(HELLO, Content_Length="9" * 30))) in (400, 413)


def test_headers_that_are_too_many_or_too_large(run):
    here = run()
    assert status(here.ask(request(HELLO, **{f"x{n}": "1" for n in range(40)}))) == 431
    assert status(here.ask(request(HELLO, x="y" * 5000))) == 431
    assert status(here.ask(request(HELLO, x="y" * 300_000))) == 400
    assert status(here.ask(request(HELLO))) == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST / HTTP/x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n: c\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told_so_in_json(run, raw):
    reply = run().ask(raw)
    assert status(reply) == 400
    assert body(reply)["error"]["type"] == "invalid_request_error"


def test_a_client_that_never_finishes_its_headers(run):
    here = run()
    with here.connect() as wire:
        begun = time.monotonic()
        wire.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n")
        for _ in range(3):  # a byte now and then does not help
            time.sleep(0.1)
            wire.sendall(b"x")
        assert everything(wire) == b""
        assert time.monotonic() - begun < 2


def test_a_client_that_says_nothing(run):
    with run().connect() as wire:
        assert everything(wire) == b""


def test_a_client_that_never_finishes_its_body(run):
    here = run()
    with here.connect() as wire:
        wire.sendall(request(HELLO)[:-5])
        reply = everything(wire)
    assert status(reply) == 408
    assert not here.engine.jobs


def test_a_client_that_reads_nothing(run):
    """Its answer is given up, and its connection ended."""
    flood = [word("x" * 60_000) for _ in range(600)]
    here = run([*flood, 60.0, Done("stop")])
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with wire:
        wire.connect(("127.0.0.1", here.port))
        wire.sendall(request({**HELLO, "stream": True}))
        assert wait_for(lambda: here.engine.tickets and here.engine.tickets[0].cancelled.is_set())
    assert wait_for(lambda: not here.listener.server_state.connections)


def test_more_connections_than_allowed(run):
    here = run()
    wires = [here.connect() for _ in range(40)]
    try:
        assert wait_for(lambda: len(here.listener.server_state.connections) == 40)
        reply = here.ask(request(HELLO))
        assert status(reply) == 503
        assert b"retry-after" in reply.lower()
    finally:
        for wire in wires:
            wire.close()
    assert wait_for(lambda: not here.listener.server_state.connections)
    assert status(here.ask(request(HELLO))) == 200


# --- clients that leave


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("answers", [1, 3])
def test_a_client_that_leaves_ends_its_answers(run, stream, answers):
    here = run([word("a"), 60.0, Done("stop")])
    with here.connect() as wire:
        wire.sendall(request({**HELLO, "stream": stream, "n": answers}))
        assert wait_for(lambda: len(here.engine.tickets) == answers)
        time.sleep(0.05)
    assert wait_for(lambda: all(t.cancelled.is_set() for t in here.engine.tickets), 1)
    assert wait_for(lambda: any(line.get("client") == "left" for line in here.log), 1)
    assert all(line["event"] == "request" and line["status"] in (200, 499) for line in here.log)


def test_an_answer_that_came_to_its_end_is_not_cancelled(run):
    here = run()
    assert status(here.ask(request(HELLO))) == 200
    assert status(here.ask(request({**HELLO, "stream": True}))) == 200
    assert not any(ticket.cancelled.is_set() for ticket in here.engine.tickets)


# --- streams


def frames(reply):
    """The data of the events of a stream."""
    text = reply.partition(b"\r\n\r\n")[2].decode()
    lines = [line.strip() for line in text.splitlines()]
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def test_a_long_prompt_is_no_silence(run):
    here = run([0.5, *SAID])
    reply = here.ask(request({**HELLO, "stream": True}))
    assert 3 <= reply.count(b": working") <= 6
    assert frames(reply)[-1] == "[DONE]"
    assert run().ask(request({**HELLO, "stream": True})).count(b": working") == 0


def test_an_error_inside_of_a_stream(run):
    here = run([word("Good"), Done("error", "the device burns")])
    reply = here.ask(request({**HELLO, "stream": True}))
    assert status(reply) == 200
    *_, last = frames(reply)
    assert "the device burns" in json.loads(last)["error"]["message"]
    reply = here.ask(request(HELLO))
    assert status(reply) == 500
    assert body(reply)["error"]["type"] == "server_error"


def test_nothing_of_the_insides_is_told(run):
    here = run()
    reply = here.ask(request({"input": "x"}, path="/v1/embeddings"))
    assert status(reply) == 500
    assert b"secret" not in reply
    assert b"Traceback" not in reply
    assert any("secret insides" in json.dumps(line) or "exc_info" in line for line in here.log)


def test_several_answers_of_which_the_second_finds_no_place(run):
    here = run()
    ones = iter([None, Busy("full", 3)])
    submit = here.engine.submit

    def second_is_refused(job):
        here.engine.busy = next(ones)
        return submit(job)

    here.engine.submit = second_is_refused
    reply = here.ask(request({**HELLO, "n": 2}))
    assert status(reply) == 429
    assert here.engine.tickets[0].cancelled.is_set()


@pytest.mark.parametrize(
    ("busy", "code", "wait"), [(Busy("full", 2.4), 429, b"2"), (Busy("over", None), 503, b"30")]
)
def test_a_full_queue(run, busy, code, wait):
    reply = run(busy=busy).ask(request(HELLO))
    assert status(reply) == code
    assert b"retry-after: " + wait in reply.lower()


def test_prompts_stay_out_of_the_log_unless_asked_for(run):
    here = run()
    here.ask(request(HELLO))
    assert wait_for(lambda: any(line["event"] == "request" for line in here.log))
    assert "hello" not in json.dumps(here.log)
    assert "Good day" not in json.dumps(here.log)
    for stream in (True, False):
        here = run(log_prompts=True)
        here.ask(request({**HELLO, "stream": stream}))
        assert wait_for(lambda here=here: any(line["event"] == "request" for line in here.log))
        assert "hello" in json.dumps(here.log)
        assert "Good day" in json.dumps(here.log)


def test_every_reply_has_an_id_that_the_log_knows(run):
    here = run()
    reply = here.ask(request(HELLO))
    (found,) = [x for x in reply.split(b"\r\n") if x.lower().startswith(b"x-request-id: ")]
    assert wait_for(lambda: [line["request"] for line in here.log] == [found[14:].decode()])


def test_draining(run):
    """What is under way ends well, and a connection that stayed open gets no more."""
    here = run([word("Good"), 0.6, Done("stop")])
    with here.connect() as wire, here.connect() as idle:
        wire.sendall(request({**HELLO, "stream": True}))
        assert wait_for(lambda: bool(here.engine.tickets))
        here.listener.should_exit = True
        reply = everything(wire)
        assert frames(reply)[-1] == "[DONE]"
        assert everything(idle) == b""
    with pytest.raises(ConnectionRefusedError):
        here.connect()


def test_while_it_stops_it_says_so(run):
    here = run()
    here.service.stop()
    asked = {
        "chat/completions": HELLO,
        "completions": {"prompt": "x"},
        "embeddings": {"input": "x"},
    }
    for path, body_ in asked.items():
        reply = here.ask(request(body_, path=f"/v1/{path}"))
        assert status(reply) == 503
        assert b"retry-after: 30" in reply.lower()
    assert status(here.ask(request(path="/ready"))) == 503
    assert status(here.ask(request(path="/health"))) == 200


def test_pipelined_requests_are_answered_in_turn(run):
    here = run()
    first = request(HELLO).replace(b"Connection: close\r\n", b"")
    reply = here.ask(first + request(HELLO))
    assert reply.count(b"HTTP/1.1 200") == 2
