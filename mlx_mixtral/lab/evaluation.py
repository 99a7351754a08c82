"""A model's scores in lm-eval's tasks, and what others have measured beside them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlx_mixtral.errors import MixtralError, UsageError
from mlx_mixtral.lab.published import Published, published
from mlx_mixtral.loading import LanguageModel


@dataclass(frozen=True)
class Score:
    """One metric of one task.

    Attributes:
        metric: as lm-eval names it, with the name of its filter unless that is "none".
        error: standard error, or None where lm-eval computes none.
        questions: how many were asked.
        shots: examples before each question.
        published: of Mixtral 8x7B, by the same metric.
    """

    task: str
    metric: str
    value: float
    error: float | None
    questions: int | None
    shots: int | None
    published: tuple[Published, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def check_installed() -> None:
    """Raises UsageError where lm-eval is not."""
    if find_spec("lm_eval") is None:
        raise UsageError("eval needs lm-eval: pip install 'mlx-mixtral[eval]'")


def check_tasks(tasks: Sequence[str], include: Path | None) -> Any:
    """lm-eval's task manager, which knows all of ``tasks``.

    Args:
        include: a folder with tasks of one's own.

    Raises:
        UsageError: an unknown task, or no such folder.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if not tasks:
        raise UsageError("--tasks names no task; for instance --tasks arc_easy,winogrande")
    if include and not include.is_dir():
        raise UsageError(f"--include-path {include} is no folder")
    path = str(include) if include else None
    manager = TaskManager(include_path=path, include_defaults=path is None)
    if path and not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=path)  # lm-eval's own 13,000 files take seconds
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise UsageError(f"--tasks {unknown[0]!r} is unknown to lm-eval; see `lm_eval ls tasks`")
    return manager


def evaluate(
    lm: LanguageModel,
    tasks: Sequence[str],
    manager: Any,
    limit: int | None = None,
    shots: int | None = None,
    chat: bool = False,
) -> list[Score]:
    """Ask the questions of ``tasks`` and judge the answers.

    Args:
        manager: from ``check_tasks``.
        limit: ask at most so many of each task.
        shots: examples before each question; by default what the task says.
        chat: put questions in the model's chat form, as an instruct model wants.

    Raises:
        MixtralError: a task's data cannot be had, or a package that it needs is missing.
        UsageError: a task would run code that the model wrote.
    """
    import lm_eval

    from mlx_mixtral.lab.harness import Harness

    try:
        found = lm_eval.simple_evaluate(
            Harness(lm),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=shots,
            apply_chat_template=chat,
            log_samples=False,
        )
    except OSError as error:  # the network's errors are its children
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MixtralError(f"the data of {', '.join(tasks)} cannot be had: {first}") from None
    except ImportError as error:
        raise MixtralError(f"a task needs more than lm-eval: pip install {error.name}") from None
    except ValueError as error:
        if "unsafe" not in str(error):
            raise
        raise UsageError("a task runs code that the model writes, which eval refuses") from None
    return [score for task in found["results"] for score in _scores(task, found)]


def _scores(task: str, found: dict[str, Any]) -> list[Score]:
    asked = found.get("n-samples", {}).get(task, {}).get("effective")
    shots = found.get("n-shot", {}).get(task)
    scores = []
    for key, value in found["results"][task].items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, float | int):
            continue
        error = found["results"][task].get(f"{metric}_stderr,{kind}")
        name = metric if kind == "none" else f"{metric} ({kind})"
        known = error if isinstance(error, float) else None
        others = published(task, metric)
        scores.append(Score(task, name, float(value), known, asked, shots, others))
    return scores
