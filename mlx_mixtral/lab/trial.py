"""One try of some settings: how fast prompts and answers are with them, in a process that has
been started with them."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from mlx_mixtral.config import read_config
from mlx_mixtral.lab.fresh import fresh
from mlx_mixtral.lab.runs import Side, measure, our_side, prompt_of
from mlx_mixtral.loading import load_model

TOLD = 16


class Work(NamedTuple):
    """What a setting is there for.

    Attributes:
        prompts: lengths; of several, the geometric mean of their speeds counts.
        answer: 0, or the tokens of an answer whose speed counts in place of the prompt's.
    """

    prompts: tuple[int, ...]
    answer: int = 0


class Trial(NamedTuple):
    """What came of it.

    Attributes:
        speeds: tokens a second in each piece of work, the median of some runs.
        answers: the likeliest answer to each prompt, which no setting may change.
    """

    speeds: list[float]
    answers: list[list[int]]


def try_out(folder: Path, works: list[Work], repeat: int, tuning_file: Path) -> Trial:
    """Measure in a process of its own, which honours ``tuning_file``.

    Raises:
        MixtralError: it failed there.
    """
    arguments: dict[str, Any] = {"folder": str(folder), "works": works, "repeat": repeat}
    environment = {"MIXTRAL_MLX_TUNING": str(tuning_file)}
    found = fresh(in_this_process, arguments, environment)
    return Trial(*found)


def in_this_process(folder: str, works: list[list[Any]], repeat: int) -> Trial:
    """As ``try_out``, with the settings that this process has."""
    config = read_config(Path(folder))
    side = our_side(load_model(Path(folder), config), config)
    speeds, answers = [], []
    for prompts, answer in works:
        ids = [prompt_of(length, config) for length in prompts]
        # This also warms up.
        answers += [[step.token for step in side.tokens(prompt, TOLD, None)] for prompt in ids]
        speeds.append(statistics.median(_speed(side, ids, answer) for _ in range(repeat)))
    return Trial(speeds, answers)


def _speed(side: Side, prompts: list[list[int]], answer: int) -> float:
    if answer:
        return measure(side, prompts[0], answer).decode_tps
    logs = [math.log(measure(side, prompt, 2).prefill_tps) for prompt in prompts]
    return math.exp(statistics.mean(logs))
