"""A server in this process, with an engine that says what a test wants, and short limits."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import structlog

from mlx_mixtral.loading import LanguageModel
from mlx_mixtral.server.app import make_app
from mlx_mixtral.server.jobs import Busy, Done, EngineStatus, Event, Job, Piece, TokenInfo
from mlx_mixtral.server.listener import Listener, open_socket
from mlx_mixtral.server.service import Service
from mlx_mixtral.server.settings import Settings

STATUS = EngineStatus(
    alive=True, accepting=True, restarts=0, running=0, running_limit=8, waiting=0,
    waiting_limit=8, kv_bytes=0, kv_limit=1, prefix_bytes=0, prefix_limit=1, prompt_tokens=0,
    cached_tokens=0, completion_tokens=0, drafted_tokens=0, accepted_tokens=0, finished={},
    refused=0, passes=0, longest_pass_s=0.0,
)  # fmt: skip


class SaidTicket:
    """Events after one another, some of them seconds to be waited for."""

    def __init__(self, said: list[Event | float]) -> None:
        self._said = iter(said)
        self.cancelled = threading.Event()
        self.ended = False

    def cancel(self) -> None:
        if not self.ended:
            self.cancelled.set()

    def __aiter__(self) -> SaidTicket:
        return self

    async def __anext__(self) -> Event:
        for event in self._said:
            if isinstance(event, float):
                await asyncio.sleep(event)
                continue
            self.ended = isinstance(event, Done)
            return event
        raise StopAsyncIteration


class SaidEngine:
    """Answers every job with the same events."""

    def __init__(self, said: list[Event | float], busy: Busy | None = None) -> None:
        self.said, self.busy = said, busy
        self.jobs: list[Job] = []
        self.tickets: list[SaidTicket] = []
        self.now = STATUS

    def submit(self, job: Job) -> SaidTicket:
        if self.busy:
            raise self.busy
        self.jobs.append(job)
        self.tickets.append(SaidTicket(list(self.said)))
        return self.tickets[-1]

    async def embed(self, prompts: object) -> object:
        raise RuntimeError("secret insides")

    def status(self) -> EngineStatus:
        return self.now


class QuietListener(Listener):
    """Leaves signals to pytest."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Here:
    """A server in a thread.

    Attributes:
        port: where it listens.
        engine: what answers.
        log: what it has logged.
    """

    def __init__(self, lm: LanguageModel, engine: SaidEngine, settings: Settings) -> None:
        self.engine, self._text = engine, io.StringIO()
        self.service = Service(lm, engine, settings)  # type: ignore[arg-type]
        log = structlog.wrap_logger(
            structlog.PrintLogger(self._text), processors=[structlog.processors.JSONRenderer()]
        )
        opened = open_socket(replace(settings, port=0))
        self.port = opened.getsockname()[1]
        ready = threading.Event()
        app = make_app(self.service, log)
        self.listener = QuietListener(app, settings, ready.set, self.service.stop)
        serve = self.listener.serve
        self._thread = threading.Thread(target=lambda: asyncio.run(serve(sockets=[opened])))
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        self.listener.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def log(self) -> list[dict]:
        return [json.loads(line) for line in self._text.getvalue().splitlines()]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(self, raw: bytes) -> bytes:
        """All that comes back to some bytes, up to the end of the connection."""
        with self.connect() as wire:
            wire.sendall(raw)
            return everything(wire)


def everything(wire: socket.socket) -> bytes:
    """What comes until the other side ends the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := wire.recv(65536):
            parts.append(part)
    return b"".join(parts)


def request(body: object = None, *, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    """The bytes of a POST (a GET where there is no body), after which the connection ends."""
    data = b"" if body is None else json.dumps(body).encode()
    head = {"Host": "localhost", "Connection": "close"}
    if body is not None:
        head |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
    head |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in head.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


def status(reply: bytes) -> int:
    return int(reply.split()[1])


def body(reply: bytes) -> dict:
    return json.loads(reply.partition(b"\r\n\r\n")[2])


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return true


def word(text: str, token: int = 300) -> Piece:
    return Piece(text, (TokenInfo(token, -0.5),))
