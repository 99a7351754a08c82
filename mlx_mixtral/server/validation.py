"""A request that is not of the form it should have, told in OpenAI's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from mlx_mixtral.server.failure import Refusal

_MOST = 3


def invalid(error: RequestValidationError) -> Refusal:
    """The first few things that are wrong; ``param`` is the first one's field."""
    found = _deepest(error.errors())
    if found[0]["type"] == "json_invalid":
        return Refusal(400, f"the body is no JSON: {found[0]['ctx']['error']}", code="invalid_json")
    told = list(dict.fromkeys(_told(problem) for problem in found))
    code = "unknown_parameter" if found[0]["type"] == "extra_forbidden" else "invalid_value"
    return Refusal(400, "; ".join(told[:_MOST]), code=code, param=_path(found[0]) or None)


def _deepest(found: Sequence[Any]) -> list[Any]:
    """Without what is said of a value as a whole where something within it is wrong.

    Where a text may stand or a list, of a wrong list it is also said that it is no text.
    """
    paths = [_path(problem) for problem in found]
    deepest = [
        problem
        for problem, path in zip(found, paths, strict=True)
        if not path or not any(other.startswith(f"{path}.") for other in paths)
    ]
    # What a validator of ours says is meant for people, and all there is to say.
    ours = [problem for problem in deepest if problem["type"] == "value_error"]
    return ours or deepest


def _told(problem: Mapping[str, Any]) -> str:
    path = _path(problem)
    if problem["type"] == "extra_forbidden":
        return f"{path} is unknown here: leave it out"
    what = str(problem["msg"]).removeprefix("Value error, ")
    return f"{path}: {what}" if path else what


def _path(problem: Mapping[str, Any]) -> str:
    """``messages.0.role``: where in the body; names of alternatives in the schema left out."""
    steps = [step for step in problem["loc"] if step not in ("body", "path", "query")]
    shown = [str(step)[:64] for step in steps if isinstance(step, int) or _is_field(step)]
    return ".".join(shown)


def _is_field(step: str) -> bool:
    alternatives = ("[", "constrained-", "TextPart", "ChosenTool", "json_object", "json_schema")
    return not (step in ("str", "float", "int", "bool") or any(a in step for a in alternatives))
