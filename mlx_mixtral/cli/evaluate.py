"""``mixtral-mlx eval``: a model's scores in lm-eval's tasks."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_mixtral.cli.options import ModelName
from mlx_mixtral.errors import UsageError

if TYPE_CHECKING:
    from mlx_mixtral.lab.evaluation import Score


def evaluate(
    model: ModelName = None,
    tasks: Annotated[
        str, typer.Option("--tasks", metavar="A,B", help="lm-eval's tasks, such as arc_easy,piqa.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Ask at most so many questions of each task.")
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(metavar="N", help="Examples before a question. Default: the task's own."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask in the model's chat form, as instruct models want.")
    ] = False,
    include_path: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A folder with tasks of your own (YAML).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as data.")] = False,
) -> None:
    """Measure a model with the tasks of lm-eval, which fetches their questions.

    What has been published for Mixtral 8x7B stands beside.
    """
    from mlx_mixtral.lab.evaluation import check_installed

    for name, value in (("--limit", limit), ("--shots", shots)):
        if value is not None and value < (0 if name == "--shots" else 1):
            raise UsageError(f"{name} {value} leaves nothing to ask")
    check_installed()
    if not sys.stderr.isatty():
        for name in PROGRESS_BARS:
            os.environ.setdefault(name, "1")
    from mlx_mixtral.catalog import default_name, resolve
    from mlx_mixtral.cli.loading import load_model
    from mlx_mixtral.lab.evaluation import check_tasks
    from mlx_mixtral.lab.evaluation import evaluate as measure

    names = [name for name in (part.strip() for part in tasks.split(",")) if name]
    resolve(model or default_name())  # whether it is there, before lm-eval reads its tasks
    manager = check_tasks(names, include_path)
    lm = load_model(model)
    scores = measure(lm, names, manager, limit, shots, chat)
    if as_json:
        record = {"model": lm.name, "scores": [score.to_dict() for score in scores]}
        print(json.dumps(record, indent=2))
    else:
        print("\n".join(_lines(lm.name, scores)))


# What switches off the progress bars of lm-eval, and of what fetches its questions.
PROGRESS_BARS = ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS")


def _lines(model: str, scores: list["Score"]) -> list[str]:
    rows = [("task", "metric", model, "questions", "shots")]
    for score in scores:
        error = "" if score.error is None else f" ± {score.error:.4f}"
        asked = "" if score.questions is None else str(score.questions)
        shots = "" if score.shots is None else str(score.shots)
        rows.append((score.task, score.metric, f"{score.value:.4f}{error}", asked, shots))
    widths = [max(len(row[n]) for row in rows) for n in range(5)]
    lines = []
    for n, row in enumerate(rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
        lines += [
            f"    {other.value:.3f} for Mixtral 8x7B ({other.source})"
            for other in (scores[n - 1].published if n else ())
        ]
    return lines
