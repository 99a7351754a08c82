"""Work in a process of its own: for what is settled when MLX is imported, and for peaks of memory.

The process imports nothing before it has been made ready, so that what is measured there is
what a person would get who starts the program anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from mlx_mixtral.errors import MixtralError

T = TypeVar("T")


def fresh(
    work: Callable[..., T],
    arguments: dict[str, Any],
    environment: dict[str, str] | None = None,
    plain: bool = False,
) -> T:
    """What ``work(**arguments)`` returns in a new process; both have to be fit for JSON.

    Args:
        work: a function of a module.
        environment: what is different there.
        plain: MLX as it comes, without what this program does before importing it.

    Raises:
        MixtralError: the process failed; with the last line that it wrote.
    """
    task = {"module": work.__module__, "function": work.__name__, "plain": plain} | {
        "arguments": arguments
    }
    done = subprocess.run(
        [sys.executable, "-m", "mlx_mixtral.lab.fresh", json.dumps(task)],
        env=os.environ | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MixtralError(lines[-1])
    # A library may have written something before.
    result: T = json.loads(done.stdout.splitlines()[-1])
    return result


def _main() -> None:
    task = json.loads(sys.argv[1])
    if not task["plain"]:
        from mlx_mixtral.before_mlx import before_mlx

        before_mlx()
    work = getattr(import_module(task["module"]), task["function"])
    print(f"\n{json.dumps(work(**task['arguments']))}")


if __name__ == "__main__":
    _main()
