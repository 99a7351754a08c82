"""How a server bears load: tokens a second by the number of clients, and the wait for the first.

    python examples/server/load.py [MODEL]                 against mlx-lm's server, the same folder
    python examples/server/load.py [MODEL] --soak 600      ten minutes of everything at once

MODEL is a folder, "demo" by default. Each server is started, asked by 1, 2, 4, 8 and 16 clients
at once, and stopped. A client asks for one answer after another, each of its own prompt.

Without a GPU mlx-lm's server is slow at the 16 bits that the model has, so it is measured a second
time with the same model in float32 (its scales, where it is quantized) and with OpenBLAS, if this
machine has it.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes.util
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDS = ["violin", "horse", "river", "castle", "clock", "bread", "winter", "letter", "garden"]


@dataclass
class Told:
    """What one answer came to: seconds to its first text, in all, and its tokens."""

    first: float
    seconds: float
    tokens: int


@dataclass
class Lap:
    """What some clients got in one lap."""

    answers: list[Told] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return sum(told.tokens for told in self.answers) / self.seconds

    def first(self, share: float) -> float:
        waits = sorted(told.first for told in self.answers)
        return waits[min(len(waits) - 1, int(share * len(waits)))]


class Server:
    """A server in a process of its own."""

    def __init__(
        self, name: str, command: list[str], port: int, model: str, **environment: str
    ) -> None:
        self.name, self.port, self.model = name, port, model
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def ready(self) -> None:
        """Waits until it answers."""
        for _ in range(600):
            try:
                await ask(self, "Hello", 2)
                return
            except (OSError, ValueError):
                await asyncio.sleep(0.2)
        raise SystemExit(f"{self.name} did not start")

    def memory(self) -> int:
        """Bytes that are resident."""
        shown = subprocess.check_output(["ps", "-o", "rss=", "-p", str(self.process.pid)])
        return int(shown) * 1024

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def ours(model: str) -> Server:
    port = free_port()
    own = [sys.executable, "-m", "mlx_mixtral", "serve", model, f"--port={port}", "--running=16"]
    return Server("mixtral-mlx", own, port, "mixtral")


def folder_of(model: str) -> Path:
    return ROOT / "mlx_mixtral" / "demo" if model == "demo" else Path(model).resolve()


def theirs(model: str, name: str = "mlx_lm.server", **environment: str) -> Server:
    folder, port = folder_of(model), free_port()
    own = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", str(port)]
    return Server(name, own, port, str(folder), **environment)


def theirs_in_float32(model: str) -> Server:
    blas = ctypes.util.find_library("openblas") if sys.platform == "linux" else None
    return theirs(model, "the same, f32", **({"LD_PRELOAD": blas} if blas else {}))


def in_float32(model: str, folder: Path) -> None:
    """Writes the same model with floating-point numbers of 32 bits."""
    import mlx.core as mx

    for file in folder_of(model).iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
            continue
        arrays = {
            name: array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
            for name, array in mx.load(str(file)).items()  # type: ignore[union-attr]
        }
        mx.save_safetensors(str(folder / file.name), arrays, metadata={"format": "mlx"})


async def ask(server: Server, prompt: str, tokens: int, **more: object) -> Told:
    """One streamed answer of so many tokens. ValueError for another status than 200."""
    begun, first, pieces, usage = time.perf_counter(), 0.0, 0, 0
    asked = {
        "model": server.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logit_bias": {"2": -100},  # so that all answers are of one length
        **more,
    }
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        await send(writer, json.dumps(asked).encode())
        status = await reader.readline()
        if b" 200 " not in status:
            raise ValueError(status.decode(errors="replace"))
        async for line in reader:
            if b'"content": "' in line and b'"content": ""' not in line:
                pieces += 1
                first = first or time.perf_counter() - begun
            if b'"completion_tokens": ' in line:
                usage = int(line.split(b'"completion_tokens": ')[1].split(b",")[0])
            if b"[DONE]" in line:
                break
    finally:
        writer.close()
    return Told(first, time.perf_counter() - begun, usage or pieces)


async def send(
    writer: asyncio.StreamWriter, body: bytes, path: str = "/v1/chat/completions"
) -> None:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()


async def lap(server: Server, clients: int, answers: int, tokens: int) -> Lap:
    """So many clients at once, each asking for so many answers."""
    done = Lap()

    async def client(number: int) -> None:
        for n in range(answers):
            word = WORDS[(number + n) % len(WORDS)]
            prompt = f"Tell me a story about a {word}. {number * 100 + n}"
            done.answers.append(await ask(server, prompt, tokens))

    begun = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    done.seconds = time.perf_counter() - begun
    return done


async def compare(
    numbers: list[int], answers: int, tokens: int, servers: list[Callable[[], Server]]
) -> None:
    print(f"{'':14} {'clients':>7} {'tokens/s':>9} {'first token, p50':>17} {'p95':>8}")
    rates: dict[str, list[float]] = {}
    for start in servers:
        server = start()
        try:
            await server.ready()
            await lap(server, 2, 1, 8)
            for clients in numbers:
                done = await lap(server, clients, answers, tokens)
                rates.setdefault(server.name, []).append(done.rate)
                print(
                    f"{server.name:14} {clients:7} {done.rate:9.1f} "
                    f"{done.first(0.5) * 1000:14.0f} ms {done.first(0.95) * 1000:5.0f} ms",
                    flush=True,
                )
        finally:
            server.stop()
    own = rates.pop("mixtral-mlx")
    for name, others in rates.items():
        ratios = [f"{n}: {a / b:.2f}" for n, a, b in zip(numbers, own, others, strict=True)]
        print(f"ratio to {name} by clients: ", ", ".join(ratios))


async def soak(model: str, seconds: float) -> None:
    """Good requests, bad ones, long ones, and clients that leave; what became of them."""
    server, seen, memory = ours(model), Counter(), []
    try:
        await server.ready()
        expected = (await known(server))[0]
        end = time.monotonic() + seconds

        async def client(seed: int) -> None:
            draw = random.Random(seed)
            while time.monotonic() < end:
                kind = draw.choice(["good", "good", "story", "leave", "leave", "bad", "long"])
                seen[f"{kind}: {await one(server, kind, draw, expected)}"] += 1

        async def watch() -> None:
            while time.monotonic() < end:
                await asyncio.sleep(min(10, seconds / 10))
                memory.append(server.memory())
                print(f"{memory[-1] / 1e6:.0f} MB, {sum(seen.values())} requests", flush=True)

        await asyncio.gather(watch(), *(client(seed) for seed in range(12)))
        await asyncio.sleep(1)
        left = await health(server)
    finally:
        server.stop()
    for kind, count in sorted(seen.items()):
        print(f"{count:6} {kind}")
    half = memory[len(memory) // 3 :]
    change = statistics.mean(half[-3:]) / statistics.mean(half[:3]) - 1
    print(f"memory after a third and at the end: {change:+.1%}")
    print(f"left over: {left['running']} running, {left['waiting']} waiting")
    wrong = sum(count for kind, count in seen.items() if "wrong" in kind)
    lost = left["running"] + left["waiting"]
    print(f"answered wrongly: {wrong}; not ended: {lost}; exit code {server.process.returncode}")


async def known(server: Server) -> tuple[str, int]:
    """The greedy answer to a question, and its status."""
    asked = {"messages": [{"role": "user", "content": "What is a violin?"}], "temperature": 0}
    return await whole(server, json.dumps(asked | {"max_tokens": 40}).encode())


async def one(server: Server, kind: str, draw: random.Random, expected: str) -> str:
    """One request of a kind; what became of it."""
    try:
        if kind == "good":
            text, status = await known(server)
            return "right" if text == expected else "429" if status == 429 else "answered wrongly"
        if kind == "story":
            told = await ask(server, f"Tell me a story {draw.random()}", draw.randrange(5, 120))
            return "told" if told.tokens else "answered wrongly"
        if kind == "long":
            prompt = " ".join(draw.choice(WORDS) for _ in range(draw.randrange(200, 600)))
            await ask(server, prompt, 4)
            return "told"
        if kind == "bad":
            broken = draw.choice([b"{", b"[]", b'{"messages": 5}', b'{"stop": 5}', b"\xff" * 50])
            _, status = await whole(server, broken)
            return "refused" if status == 400 else f"answered wrongly: {status}"
        return await leave(server, draw)
    except ValueError as error:
        return "429" if "429" in str(error) else f"answered wrongly: {error}"


async def leave(server: Server, draw: random.Random) -> str:
    asked = {
        "messages": [{"role": "user", "content": f"Tell me a story {draw.random()}"}],
        "stream": draw.random() < 0.5,
        "max_tokens": 800,
        "n": draw.choice([1, 1, 3]),
    }
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = json.dumps(asked).encode()
    await send(writer, body[: draw.choice([len(body), len(body), len(body) // 2])])
    await asyncio.sleep(draw.random() * 0.5)
    if draw.random() < 0.5:
        writer.transport.abort()
    writer.close()
    return "left"


async def whole(server: Server, body: bytes) -> tuple[str, int]:
    """The text of an answer that is not streamed, and the status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await send(writer, body)
    reply = await reader.read()
    writer.close()
    head, _, rest = reply.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    return json.loads(rest)["choices"][0]["message"]["content"] if status == 200 else "", status


async def health(server: Server) -> dict:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    reply = await reader.read()
    writer.close()
    return json.loads(reply.partition(b"\r\n\r\n")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--answers", type=int, default=4, help="of each client in a lap")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--alone", action="store_true", help="without mlx-lm's server")
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    given = parser.parse_args()
    if given.soak:
        asyncio.run(soak(given.model, given.soak))
        return
    with tempfile.TemporaryDirectory() as place:
        servers: list[Callable[[], Server]] = [lambda: ours(given.model)]
        if not given.alone:
            in_float32(given.model, Path(place))
            servers += [lambda: theirs(given.model), lambda: theirs_in_float32(place)]
        asyncio.run(compare(given.clients, given.answers, given.tokens, servers))


if __name__ == "__main__":
    main()
