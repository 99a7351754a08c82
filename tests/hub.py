"""A Hugging Face Hub on this machine, for its real client: repositories, a CDN, faults to order.

The interface is the one that huggingface_hub talks to: a listing as JSON, files at
``resolve/REVISION/NAME``, large ones by a redirect to another host (here: another port).
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BLOCK = 1 << 14


NAME = "someone/Mixtral"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def shard(seed: int, size: int) -> bytes:
    """A safetensors file of ``size`` random bytes of data."""
    entry = {"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    text = json.dumps(entry).encode()
    return len(text).to_bytes(8, "little") + text + random.Random(seed).randbytes(size)


FILES = {
    ".gitattributes": b"*.safetensors filter=lfs",
    "README.md": b"# A model",
    "config.json": b'{"model_type": "mixtral"}',
    "LICENSE.txt": b"Apache License",
    "tokenizer.model": random.Random(1).randbytes(5_000),
    "modeling_mixtral.py": b"print('code')",
    "model.safetensors.index.json": b'{"weight_map": {}}',
    SHARDS[0]: shard(2, 300_000),
    SHARDS[1]: shard(3, 200_000),
    "consolidated.00.pt": b"another form of the same",
    "pytorch_model.bin": b"and another",
}
WANTED = {*SHARDS, "config.json", "tokenizer.model", "LICENSE.txt", "model.safetensors.index.json"}
WHOLE = {name: FILES[name] for name in WANTED}


@dataclass
class Fault:
    """What goes wrong with the next ``times`` answers about a file (-1: with all of them)."""

    times: int = 1
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Bytes of the body after which the connection ends."""
    reset: bool = False
    """It ends with a reset, in place of a proper end."""
    content: bytes | None = None
    """What is sent instead of the file."""
    pause: float = 0
    """Seconds between two blocks of the body."""
    ranges: bool = True
    """False: whole files only, whatever was asked."""
    length: bool = True
    """False: nothing says how long the answer is; the end of the connection is its end."""
    shift: int = 0
    """How far from what was asked an answer with a range begins."""


@dataclass(frozen=True)
class Request:
    """What was asked: ``host`` is hub or cdn, ``start`` where a range begins, or 0."""

    host: str
    method: str
    path: str
    file: str
    start: int
    end: int | None
    token: str | None


@dataclass
class Repo:
    """One commit of a repository."""

    files: dict[str, bytes]
    licence: str | None = "apache-2.0"
    gated: bool = False
    token: str | None = None
    """Who does not send it does not see the repository."""
    revision: str = "main"
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Fields to say otherwise in the listing, by file name."""
    xet: dict[str, str] = field(default_factory=dict)
    """Xet hash of the files that are there by Xet too."""

    def __post_init__(self) -> None:
        self.sha256 = {name: hashlib.sha256(it).hexdigest() for name, it in self.files.items()}
        self.commit = hashlib.sha1(repr(self.sha256).encode()).hexdigest()


def is_large(name: str, content: bytes) -> bool:
    """Whether the hub would keep it by Git LFS."""
    large = (".safetensors", ".gguf", ".pth", ".pt", ".npz", ".bin", "tokenizer.model")
    return name.endswith(large) or "split" in name or len(content) > 1 << 20


def git_blob(content: bytes) -> str:
    """The name that Git has for a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """Both servers, what they hold and what they were asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: dict[str, Fault] = {}
        """By file name; ``api`` for the listing."""
        self.log: list[Request] = []
        self.cas = ""
        """Where Xet's storage is, if there is one."""
        self._servers = [_Server(self, host) for host in ("hub", "cdn")]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{s.server_port}" for s in self._servers)

    @contextmanager
    def running(self) -> Iterator[Hub]:
        threads = [
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            for server in self._servers
        ]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            for server in self._servers:
                server.shutdown()
                server.server_close()

    def fetched(self, file: str) -> list[tuple[int, int | None]]:
        """The ranges of ``file`` whose bytes were asked for, in order."""
        large = [r for r in self.log if r.method == "GET" and r.file == file]
        return [(r.start, r.end) for r in large if r.host == "cdn" or not self._moved(file)]

    def _moved(self, file: str) -> bool:
        return any(r.host == "cdn" and r.file == file for r in self.log)

    def asked(self) -> set[str]:
        """The files that were asked for in any way."""
        return {request.file for request in self.log if request.file != "api"}

    def fault(self, file: str) -> Fault:
        """The fault that is due for an answer about ``file``."""
        fault = self.faults.get(file)
        if not fault or not fault.times:
            return Fault()
        fault.times -= 1
        return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: Hub, host: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.host = hub, host

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    server: _Server

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if self.server.host == "cdn":
            self._cdn(*parts)
        elif parts[:2] == ["api", "models"]:
            self._api("/".join(parts[2:4]), parts[4:], "blobs" in parse_qs(url.query))
        elif parts[0] == "xet-token":
            self._xet_token()
        else:
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _note(self, file: str) -> None:
        start, end = self._range()
        token = self.headers.get("Authorization")
        self.server.hub.log.append(
            Request(self.server.host, self.command, self.path, file, start, end, token)
        )

    def _range(self) -> tuple[int, int | None]:
        start, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        return int(start), int(last) + 1 if last else None

    def _repo(self, name: str, revision: str) -> Repo | None:
        """The repository, or an answer why not."""
        repo = self.server.hub.repos.get(name)
        token = self.headers.get("Authorization")
        if token == "Bearer hf_bad":
            self._refuse(401, message="Invalid credentials in Authorization header")
        elif not repo or (repo.token and token != f"Bearer {repo.token}"):
            if token:
                self._refuse(404, "RepoNotFound")
            else:
                self._refuse(401, message="Invalid username or password.")
        elif revision not in (repo.revision, repo.commit):
            self._refuse(404, "RevisionNotFound")
        else:
            return repo
        return None

    def _refuse(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, headers | {k: v for k, v in named.items() if v}, b'{"error":"no"}')

    def _api(self, name: str, rest: list[str], blobs: bool) -> None:
        self._note("api")
        fault = self.server.hub.fault("api")
        if fault.status:
            self._refuse(fault.status, **fault.headers)
        elif fault.content is not None:
            self._send(200, {"Content-Type": "text/html"}, fault.content)
        elif repo := self._repo(name, rest[1] if len(rest) > 1 else "main"):
            tree = rest[:1] == ["tree"]
            answer = _tree(repo) if tree else _listing(name, repo, blobs)
            self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _resolve(self, name: str, revision: str, file: str) -> None:
        self._note(file)
        if not (repo := self._repo(name, revision)):
            return
        if repo.gated and self.headers.get("Authorization") != "Bearer hf_good":
            self._refuse(403, "GatedRepo", "Access to this repository is restricted")
        elif file not in repo.files:
            self._refuse(404, "EntryNotFound")
        else:
            content = repo.files[file]
            headers = {"X-Repo-Commit": repo.commit}
            if not is_large(file, content):
                self._content(file, content, headers | {"ETag": f'"{git_blob(content)}"'})
                return
            sha256 = repo.sha256[file]
            headers |= {
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": f'"{sha256}"',
                "Location": f"{self.server.hub.cdn}/{name}/{file}?sha256={sha256}&Signature=secret",
            }
            if file in repo.xet:
                headers["X-Xet-Hash"] = repo.xet[file]
                headers["X-Xet-Refresh-Route"] = f"{self.server.hub.endpoint}/xet-token"
            self._send(302, headers, b"Found")

    def _cdn(self, owner: str, repo: str, *file: str) -> None:
        self._note("/".join(file))
        content = self.server.hub.repos[f"{owner}/{repo}"].files["/".join(file)]
        self._content("/".join(file), content, {})

    def _xet_token(self) -> None:
        self._note("xet-token")
        access = {"casUrl": self.server.hub.cas, "accessToken": "xet", "exp": 1 << 33}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(access).encode())

    def _content(self, file: str, content: bytes, headers: dict[str, str]) -> None:
        """The bytes of a file, or of a range of it, with what is to go wrong."""
        fault = self.server.hub.fault(file) if self.command == "GET" else Fault()
        if fault.status:
            self._refuse(fault.status, **fault.headers)
            return
        content = content if fault.content is None else fault.content
        start, end = self._range()
        start += fault.shift if start else 0
        if "Range" not in self.headers or not fault.ranges:
            self._send(200, headers, content, fault)
        elif start >= len(content):
            self._refuse(416)
        else:
            body = content[start:end]
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(content)}"
            self._send(206, headers, body, fault)

    def _send(
        self, status: int, headers: Mapping[str, str], body: bytes, fault: Fault | None = None
    ) -> None:
        fault = fault or Fault()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("X-HF-Warning", "login; who is logged in gets more")
        if fault.length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        for at in range(0, len(body[: fault.cut]), BLOCK):
            self.wfile.write(body[: fault.cut][at : at + BLOCK])
            if fault.pause:
                time.sleep(fault.pause)
        if fault.cut is not None and fault.cut < len(body):
            self.close_connection = True
            if fault.reset:
                time.sleep(0.1)  # a reset overtakes what is still under way
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()


def _listing(name: str, repo: Repo, blobs: bool) -> dict[str, Any]:
    """The answer of ``/api/models/NAME``."""
    siblings = []
    for file, content in repo.files.items():
        entry: dict[str, Any] = {"rfilename": file}
        if blobs:
            entry |= {"size": len(content), "blobId": git_blob(content)}
            if is_large(file, content):
                entry["lfs"] = {"sha256": repo.sha256[file], "size": len(content)}
                entry["lfs"]["pointerSize"] = 134
        siblings.append(entry | repo.changes.get(file, {}))
    tags = ["safetensors", f"license:{repo.licence}"] if repo.licence else []
    return {
        "id": name,
        "modelId": name,
        "sha": repo.commit,
        "private": bool(repo.token),
        "gated": "auto" if repo.gated else False,
        "tags": tags,
        "siblings": siblings,
    }


def _tree(repo: Repo) -> list[dict[str, Any]]:
    """The answer of ``/api/models/NAME/tree/REVISION``, which fills the client's cache."""
    entries = []
    for file, content in repo.files.items():
        entry: dict[str, Any] = {"type": "file", "path": file}
        entry |= {"size": len(content), "oid": git_blob(content)}
        if is_large(file, content):
            entry["lfs"] = {"oid": repo.sha256[file], "size": len(content), "pointerSize": 134}
        entries.append(entry)
    return entries
