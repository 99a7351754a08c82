"""``llm -m mixtral``: the plugin, as its user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from served import ANSWER, QUESTION


@pytest.fixture(scope="module")
def llm(server, tmp_path_factory):
    """Runs ``llm`` with arguments; what it prints."""
    home = tmp_path_factory.mktemp("llm")
    program = Path(sys.executable).parent / "llm"

    def llm(*arguments, url=server.url, fails=False):
        env = {**os.environ, "LLM_USER_PATH": str(home), "MIXTRAL_MLX_URL": url}
        done = subprocess.run(
            [program, *arguments], env=env, capture_output=True, text=True, input=""
        )
        assert bool(done.returncode) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return llm


def test_a_prompt_streamed_and_whole(llm):
    assert llm("-m", "mixtral", QUESTION).strip() == ANSWER
    assert llm("-m", "mixtral", "--no-stream", QUESTION).strip() == ANSWER


def test_a_schema(llm):
    hot = ("-o", "max_tokens", "200", "-o", "seed", "1")
    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}},
              "required": ["age"], "additionalProperties": False}  # fmt: skip
    told = json.loads(llm("-m", "mixtral", "--schema", json.dumps(schema), "A dog", *hot))
    assert isinstance(told["age"], int)


def test_a_tool(llm):
    """The model need not call it; the request and its answer have to be understood."""
    code = "def violins() -> str:\n    'How many violins there are.'\n    return '3'"
    assert llm("-m", "mixtral", "--functions", code, QUESTION, "-o", "max_tokens", "40").strip()


def test_embeddings(llm):
    vector = json.loads(llm("embed", "-m", "mixtral-embed", "-c", "A violin"))
    assert len(vector) == 256


def test_no_server(llm):
    told = llm("-m", "mixtral", "hi", url="http://127.0.0.1:1", fails=True)
    assert "mixtral-mlx serve" in told
    assert "Traceback" not in told
