"""Finding the settings that are best on this machine, by trying.

One setting after the other, each value against the best so far: coordinate descent. Machines
drift, so a value is always measured next to what it is compared with, each in a process of its
own, and one that looks better has to be better again, in the other order, before it is kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.errors import MixtralError
from mlx_mixtral.generation.prefill import usual_chunk
from mlx_mixtral.lab.runs import Tell
from mlx_mixtral.lab.trial import Trial, Work
from mlx_mixtral.tuning import ENVIRONMENT, Tuning

WORTH = 1.02
ROUNDS = 3

# From settings and names of work to what they give.
Try = Callable[[Tuning, Sequence[str]], Trial]


@dataclass(frozen=True)
class Knob:
    """A setting, the values to try, and the name of the work that it is there for."""

    name: str
    values: tuple[int, ...]
    work: str


@dataclass(frozen=True)
class Finding:
    """What came of one setting.

    Attributes:
        tried: value -> speed over that of the best so far; 0 where it failed, or where the
            answers were others.
        kept: the value that was better every time, or None.
        gain: the median of its rounds; 1 where nothing was kept.
    """

    name: str
    work: str
    tried: dict[int, float]
    kept: int | None
    gain: float


@dataclass(frozen=True)
class Found:
    """What came of all of them.

    Attributes:
        gains: by work, speed with ``tuning`` over that with the defaults, measured once more.
    """

    tuning: Tuning
    findings: list[Finding]
    gains: dict[str, float]


def works_of(config: ModelConfig) -> dict[str, Work]:
    """Long prompts, in chunks; short ones, such as a turn of a chat or a draft to be verified,
    whose lengths lie around the thresholds; and answers."""
    longest = config.max_position_embeddings - 64
    return {
        "long prompts": Work((min(2 * usual_chunk(), longest),)),
        "short prompts": Work(tuple(n for n in (8, 16, 32, 64, 128) if n <= longest)),
        "answers": Work((16,), 48),
    }


def knobs_of(
    config: ModelConfig, gpu: bool, blas: bool, environment: Mapping[str, str]
) -> list[Knob]:
    """What there is to try on this device. What the user has set is left alone."""
    chunk, knobs = usual_chunk(), []
    if gpu:
        # The size first: with experts as large as Mixtral's it is what ends a buffer.
        knobs += [Knob("mb_per_buffer", (200, 1000, 4000), "answers")]
        knobs += [Knob("ops_per_buffer", (100, 400, 1000), "answers")]
    knobs += [Knob("prefill_chunk", (chunk // 4, chunk // 2, 2 * chunk), "long prompts")]
    if config.is_moe:
        knobs += [Knob("sort_from", (64, 128) if gpu else (16, 64, 128), "short prompts")]
    if not gpu and blas:
        knobs += [Knob("unpack_from", (2, 8, 16), "short prompts")]
    return [knob for knob in knobs if ENVIRONMENT.get(knob.name, "") not in environment]


def tune(knobs: Sequence[Knob], works: Sequence[str], trial: Try, tell: Tell) -> Found:
    """Try everything.

    Args:
        works: names of all the work, to be compared in the end.

    Raises:
        MixtralError: the model does not run with the defaults, or the settings that were
            found change an answer only together.
    """
    best, findings = Tuning(), []
    for knob in knobs:
        found = _turn(knob, best, trial, tell)
        findings.append(found)
        if found.kept is not None:
            best = best.but(knob.name, found.kept)
    gains = dict.fromkeys(works, 1.0)
    if best.given:
        tell("all of it against the defaults")
        before, after = trial(Tuning(), works), trial(best, works)
        if before.answers != after.answers:
            raise MixtralError(f"answers differ with {best.given}; nothing was kept")
        ratios = [b / a for a, b in zip(before.speeds, after.speeds, strict=True)]
        gains = dict(zip(works, ratios, strict=True))
    return Found(best, findings, gains)


def _turn(knob: Knob, best: Tuning, trial: Try, tell: Tell) -> Finding:
    tried = {}
    for value in knob.values:
        tell(f"{knob.name} {value}")
        tried[value] = _ratio(trial, best, best.but(knob.name, value), knob.work)
    value = max(tried, key=tried.__getitem__)
    rounds = [tried[value]]
    while len(rounds) < ROUNDS and min(rounds) > 1 and rounds[0] > WORTH:
        tell(f"{knob.name} {value} once more")
        changed = best.but(knob.name, value)
        rounds.append(_ratio(trial, best, changed, knob.work, changed_first=True))
    gain = statistics.median(rounds)
    if len(rounds) < ROUNDS or min(rounds) <= 1 or gain <= WORTH:
        return Finding(knob.name, knob.work, tried, None, 1.0)
    return Finding(knob.name, knob.work, tried, value, gain)


def _ratio(
    trial: Try, best: Tuning, changed: Tuning, work: str, changed_first: bool = False
) -> float:
    """How many times as fast ``changed`` is; 0 where it fails, or answers something else."""
    after = _or_none(trial, changed, work) if changed_first else None
    before = trial(best, [work])
    if not changed_first:
        after = _or_none(trial, changed, work)
    if after is None or after.answers != before.answers:
        return 0.0
    return after.speeds[0] / before.speeds[0]


def _or_none(trial: Try, tuning: Tuning, work: str) -> Trial | None:
    # A value that this machine cannot run with, for want of memory say, is a finding.
    try:
        return trial(tuning, [work])
    except MixtralError:
        return None
