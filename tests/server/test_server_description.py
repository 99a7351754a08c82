"""The API's description is true: schemathesis makes requests from it and judges the replies.

``pytest -m fuzz --hypothesis-profile=long`` makes many more.
"""

from __future__ import annotations

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from served import examples

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
)


MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]


@pytest.mark.fuzz
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_replies_are_as_described(server, mode):
    described = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for found in described.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=examples(25) if operation.body else 3,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            # An answer until the context is full takes long, and says nothing about the form.
            if isinstance(case.body, dict) and {"messages", "prompt"} & case.body.keys():
                case.body.setdefault("max_tokens", 3)
            elif case.path == "/v1/responses" and isinstance(case.body, dict):
                case.body.setdefault("max_output_tokens", 3)
            elif case.path in ("/api/chat", "/api/generate") and isinstance(case.body, dict):
                case.body.setdefault("options", {"num_predict": 3})
            case.validate_response(case.call(timeout=60), checks=CHECKS)

        try:
            check()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE  # nothing can be wrong where nothing is given
    assert server.answers()


TALK = {"messages": [{"role": "user", "content": "What is the weather?"}], "max_tokens": 40}
TOOL = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", TALK),
        ("/v1/chat/completions", TALK | {"logprobs": True, "top_logprobs": 2, "routing": True}),
        ("/v1/chat/completions", TALK | {"n": 2, "stream_options": {"include_usage": True}}),
        ("/v1/chat/completions", TALK | {"tools": [TOOL], "tool_choice": "required"}),
        ("/v1/completions", {"prompt": ["a", "b"], "logprobs": 2}),
        ("/v1/responses", {"input": "Hello", "top_logprobs": 2}),
        (
            "/v1/responses",
            {
                "input": "Hello",
                "max_output_tokens": 40,
                "tool_choice": "required",
                "tools": [
                    {"type": "function", "name": "weather", "parameters": {"type": "object"}}
                ],
            },
        ),
    ],
    ids=["plain", "detailed", "usage", "tools", "texts", "response", "calls"],
)
def test_events_are_as_described(server, path, asked):
    described = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    json = {"content-type": "application/json"}
    case = described[path]["POST"].Case(
        body=asked | {"stream": True}, media_type="application/json", headers=json
    )
    reply = case.call(timeout=60)
    assert reply.headers["content-type"][0].startswith("text/event-stream")
    case.validate_response(reply, checks=CHECKS[1:4])


def test_the_description_names_what_counts(server):
    api = httpx2.get(f"{server.url}/openapi.json").json()
    assert set(api["paths"]) >= {
        "/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings", "/v1/models",
        "/v1/tokenize", "/v1/detokenize", "/health", "/ready", "/metrics",
    }  # fmt: skip
    chat = api["components"]["schemas"]["ChatRequest"]
    assert chat["additionalProperties"] == {"type": "null"}
    assert {"routing", "response_format", "tool_choice", "random_seed"} <= set(chat["properties"])
    assert "text/event-stream" in str(api["paths"]["/v1/chat/completions"])


def test_it_can_be_read_offline(server):
    page = httpx2.get(f"{server.url}/docs")
    assert page.status_code == 200
    assert "<script" not in page.text
    assert "http" not in page.text.replace("http.", "")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("response_format", "POST /v1/chat/completions", "routing", "ChatChunk</a>"):
        assert name in page.text
