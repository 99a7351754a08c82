"""One server for all tests of the folder."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import openai
import pytest
from served import Server, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    """OpenAI's client, which here refuses replies that are not of the form it expects."""
    with openai.OpenAI(
        base_url=f"{server.url}/v1",
        api_key="none",
        max_retries=0,
        timeout=60,
        _strict_response_validation=True,
    ) as client:
        yield client


@pytest.fixture
def post(server: Server):
    """Sends JSON to a path; the reply."""
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        yield lambda path, body, **more: http.post(path, json=body, **more)


@pytest.fixture
def refused(post):
    """The error object of a request that has to be refused with a status."""

    def refused(status: int, body: dict, path: str = "/v1/chat/completions") -> dict:
        reply = post(path, body)
        assert reply.status_code == status, reply.text
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return error

    return refused
