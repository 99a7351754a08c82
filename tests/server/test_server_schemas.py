"""Random schemas through the whole server: what it answers keeps to them.

``pytest -m fuzz --hypothesis-profile=long`` tries thousands.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings, target
from hypothesis import strategies as st
from schemas import SCHEMAS, check_valid
from served import examples, user

SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.fuzz
@settings(max_examples=examples(25), suppress_health_check=SLOW)
@given(schema=SCHEMAS, seed=st.integers(0, 99), stream=st.booleans())
@example({"type": "object"}, 1, True)
def test_answers_keep_to_random_schemas(client, schema, seed, stream):
    form = {"type": "json_schema", "json_schema": {"name": "wanted", "schema": schema}}
    asked = {
        "model": "demo",
        "messages": user("Give me an example."),
        "response_format": form,
        "temperature": 1.2,
        "seed": seed,
        "max_tokens": 150,
    }
    if stream:
        chunks = list(client.chat.completions.create(stream=True, **asked))
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        choice = client.chat.completions.create(**asked).choices[0]
        text, reason = choice.message.content, choice.finish_reason
    target(len(text))
    if reason == "stop":
        check_valid(text, schema)
    else:
        assert reason == "length"
