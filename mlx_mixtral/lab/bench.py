"""How fast a model runs here: load, prompt, answer, memory, and how near the ceiling.

Everything is timed around evaluated work, after a run that warms up. An opponent alternates
with this program, so that a machine whose speed drifts treats both alike; the medians of the
pairs' ratios are what to quote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_mixtral.lab.contexts import Contexts, over_contexts
from mlx_mixtral.lab.loads import Loads
from mlx_mixtral.lab.machine import machine, peak_process_bytes
from mlx_mixtral.lab.opponents import mlx_lm
from mlx_mixtral.lab.report import Opponent, Report, Settings
from mlx_mixtral.lab.reported import MIXTRAL_8X7B
from mlx_mixtral.lab.roofline import Bandwidth, kv_bytes_per_token, measure_bandwidth, traffic
from mlx_mixtral.lab.runs import (
    OURS,
    Run,
    Side,
    Speeds,
    Tell,
    alternate,
    measure,
    our_side,
    paired,
    prompt_of,
)
from mlx_mixtral.lab.streams import measure_streams
from mlx_mixtral.lab.subject import Subject
from mlx_mixtral.lab.turns import hold_turns, script_of
from mlx_mixtral.tuning import read_tuning


def bench(
    subject: Subject,
    settings: Settings,
    tell: Tell = lambda _: None,
    loads: Sequence[Loads] = (),
    probe: Callable[[], Bandwidth] = measure_bandwidth,
) -> Report:
    """Measure a model.

    Args:
        settings: checked against the model (``Settings.ready_for``).
        tell: called with what is being done.
        loads: what ``compare_loads`` found, before ``subject`` took its memory.

    Raises:
        UsageError: the turns do not fit into the model's context.
    """
    config, lm, prompt = subject.config, subject.lm, prompt_of(settings.prompt, subject.config)
    script = script_of(lm, settings.turns, settings.prompt) if lm and settings.turns else None
    tell("warming up")
    ours = our_side(subject.model, config)
    caches = ours.caches()
    # The first run is whole: it tells the memory that a run takes, before any opponent's.
    measure(ours, prompt, settings.generate, caches)
    peaks = mx.get_peak_memory(), peak_process_bytes()
    per_token = kv_bytes_per_token(caches)
    del caches
    tell("measuring the memory's bandwidth")
    bandwidth = probe()

    opponents, failed = _opponents(subject, settings, prompt, tell)
    sides = {OURS: ours, **opponents}
    runs = alternate(sides, prompt, settings.generate, settings.repeat, tell)
    contexts = _contexts(sides, subject, settings, tell)
    talks = min(settings.repeat, 3)
    turns = hold_turns(lm, sides, script, talks, tell) if lm and script else []

    def ceiling_after(context: int) -> float:
        middle = context + settings.generate // 2
        return bandwidth.best / traffic(subject.model, config, per_token, middle).total

    streaming = lm.streaming if lm else None
    if streaming:
        tell("counting what is read from disk")
    tuning, tuning_note = read_tuning()
    speeds, ceiling = Speeds.of(runs[OURS]), ceiling_after(settings.prompt)
    middle = settings.prompt + settings.generate // 2
    return Report(
        model=subject.name,
        note=subject.note,
        experts=config.num_local_experts,
        experts_per_token=config.num_experts_per_tok if config.is_moe else 0,
        layers=config.num_hidden_layers,
        bits=config.quantization.default.bits if config.quantization else 16,
        machine=machine(),
        settings=settings,
        tuning=tuning.given,
        tuning_note=tuning_note,
        load_s=subject.load_s,
        loads=list(loads),
        ours=speeds,
        opponents=[_compared(name, runs, failed) for name in settings.against],
        peak_array_bytes=peaks[0],
        peak_process_bytes=peaks[1],
        traffic=traffic(subject.model, config, per_token, middle),
        bandwidth=bandwidth,
        ceiling_tps=ceiling,
        reached=speeds.decode_tps.median / ceiling,
        contexts=contexts,
        ceilings=[ceiling_after(point.context) for point in contexts.points] if contexts else [],
        turns=turns,
        streams=measure_streams(streaming, ours, prompt, settings.generate) if streaming else None,
        reported_by_others=MIXTRAL_8X7B,
    )


def _opponents(
    subject: Subject, settings: Settings, prompt: list[int], tell: Tell
) -> tuple[dict[str, Side], dict[str, str]]:
    """The opponents that run, warmed up, and of those that do not, why."""
    sides, failed = {}, {}
    folder = subject.lm.path if subject.lm else None
    for name in settings.against:
        tell(f"loading {name}")
        try:
            side = mlx_lm(name, folder, subject.config, subject.model)
            measure(side, prompt, 2)
        # Whatever keeps another program from running is a finding, told in the table.
        except Exception as error:
            lines = str(error).splitlines() or [type(error).__name__]
            failed[name] = lines[0]
        else:
            sides[name] = side
    return sides, failed


def _compared(name: str, runs: dict[str, list[Run]], failed: dict[str, str]) -> Opponent:
    if name in failed:
        return Opponent(name, error=failed[name])
    ours, theirs = runs[OURS], runs[name]
    prefill = paired([r.prefill_tps for r in ours], [r.prefill_tps for r in theirs])
    decode = paired([r.decode_tps for r in ours], [r.decode_tps for r in theirs])
    return Opponent(name, Speeds.of(theirs), prefill, decode)


def _contexts(
    sides: dict[str, Side], subject: Subject, settings: Settings, tell: Tell
) -> Contexts | None:
    if not settings.contexts:
        return None
    lengths = tuple(sorted(set(settings.contexts)))
    repeat = min(settings.repeat, 5)
    return over_contexts(sides, subject.config, lengths, settings.generate, repeat, tell)
