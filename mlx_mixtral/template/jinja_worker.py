"""A program of its own that renders one chat template which nobody vouches for.

Reads ``{"path", "source", "variables"}`` as JSON from stdin and writes ``{"text"}``,
``{"refused"}`` (the template called ``raise_exception``) or ``{"error"}``. Jinja's sandbox
keeps the template from Python's insides; the limits of this process bound what it can
spend. A template over the limits ends the process without an answer.
"""

from __future__ import annotations

import json
import resource
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

CPU_SECONDS = 2
MEMORY_BYTES = 1 << 30
MAX_CHARACTERS = 8 << 20
MAX_PRODUCT = 1 << 16  # of a text and a number, or a number and a power


def main() -> None:
    """Answers the request on stdin."""
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    answer = render(request["source"], request["variables"])
    sys.stdout.write(json.dumps(answer))


def limit_process() -> None:
    """Bounds this process; the kernel ends it beyond."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # macOS knows this limit but refuses to set it: there, time alone is bounded.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def render(source: str, variables: dict[str, Any]) -> dict[str, str]:
    """The rendering, or in one line why there is none; with transformers' functions."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Refusal(Exception):
        pass

    class Sandbox(ImmutableSandboxedEnvironment):
        # The compiler would compute 'a' * 10**10 before anything runs: on macOS nothing else
        # bounds memory.
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [abs(x) if isinstance(x, int | float) else len(x) for x in (left, right)]
            repeats = isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple)
            if (operator == "**" or repeats) and sizes[0] * sizes[1] > MAX_PRODUCT:
                raise jinja2.exceptions.SecurityError(f"the result of {operator} is too large")
            return super().call_binop(context, operator, left, right)

    def raise_exception(message: object) -> None:
        raise Refusal(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    parts, length = [], 0
    try:
        for part in environment.from_string(source).generate(**variables):
            parts.append(part)
            length += len(part)
            if length > MAX_CHARACTERS:
                return {"error": "its text has no end"}
    except Refusal as refusal:
        return {"refused": _line(refusal)}
    except Exception as error:  # whatever a stranger's template may raise
        return {"error": f"{type(error).__name__}: {_line(error)}"}
    return {"text": "".join(parts)}


def _line(error: object) -> str:
    """One short printable line: the text is a stranger's, and terminals obey escapes."""
    words = " ".join(str(error).split())
    return "".join(c if c.isprintable() else "?" for c in words)[:300]


if __name__ == "__main__":
    limit_process()
    main()
