"""``mixtral-mlx serve`` in a process of its own, on the demo model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from hypothesis import settings

QUESTION = "What is a violin?"
ANSWER = "A violin is a stringed instrument that is played with a bow."


@dataclass
class Server:
    """A running ``mixtral-mlx serve``."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def lines(self) -> list[dict]:
        """What it has logged so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def health(self) -> dict:
        return httpx2.get(f"{self.url}/health").json()

    def answers(self) -> bool:
        """Whether a good request gets its right answer."""
        asked = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
        reply = httpx2.post(f"{self.url}/v1/chat/completions", json=asked, timeout=60)
        return reply.json()["choices"][0]["message"]["content"] == ANSWER


@contextmanager
def serving(*arguments: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """A server on a free port, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlx_mixtral", "serve", "demo", "--port=0", *arguments],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **(env or {})},
                # A shell's background jobs are deaf to Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        try:
            line = process.stdout.readline()
            assert line.startswith("serving "), log.read_text()
            yield Server(process, line.split()[-1], log)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def examples(usual: int) -> int:
    """How many examples hypothesis tries: as usual, or many times that in `make fuzz`."""
    return usual * max(1, settings.default.max_examples // 1000)


def user(text: str = QUESTION) -> list[dict]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]
