"""``mixtral-mlx bench``: how fast a model runs on this machine, and what the ceiling is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_mixtral.cli.bench_options import (
    Against,
    AsJson,
    BenchMemory,
    Bits,
    ContextLengths,
    Generate,
    GroupSize,
    LayerCount,
    Plot,
    Prompt,
    Repeat,
    Shape,
    Tune,
    TuneReset,
    Turns,
    parse_contexts,
)
from mlx_mixtral.cli.options import ModelName, ReadAhead
from mlx_mixtral.cli.status import status_line
from mlx_mixtral.errors import UsageError

if TYPE_CHECKING:
    from mlx_mixtral.config import ModelConfig
    from mlx_mixtral.lab.report import Report, Settings


def bench(
    model: ModelName = None,
    prompt: Prompt = 128,
    generate: Generate = 64,
    repeat: Repeat = 7,
    against: Against = None,
    contexts: ContextLengths = None,
    turns: Turns = 0,
    memory: BenchMemory = None,
    read_ahead: ReadAhead = 0,
    shape: Shape = None,
    bits: Bits = None,
    group_size: GroupSize = None,
    layers: LayerCount = None,
    plot: Plot = None,
    tune: Tune = False,
    tune_reset: TuneReset = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model here: tokens a second, memory, and how near the ceiling they come.

    The ceiling is the memory's bandwidth, measured too, over the bytes that a token reads.
    """
    if shape is not None and memory is not None:
        raise UsageError("--memory takes a model: what --shape makes lies on no disk")
    parts = {"--bits": bits, "--group-size": group_size, "--layers": layers}
    _check(model, shape, [name for name, value in parts.items() if value is not None])
    if tune or tune_reset:
        _tune(model, shape, tune_reset, as_json)
        return
    from mlx_mixtral.before_mlx import before_mlx

    before_mlx()
    from mlx_mixtral.lab.plot import check_plot
    from mlx_mixtral.lab.plot import plot as draw
    from mlx_mixtral.lab.report import Settings
    from mlx_mixtral.lab.shapes import shape_config

    lengths = parse_contexts(contexts)
    settings = Settings(prompt, generate, repeat, tuple(against or ()), lengths, turns)
    if plot:
        check_plot(plot)
    if shape is None:
        report = _bench_folder(model, settings, plot is not None, memory, read_ahead)
    else:
        if turns:
            raise UsageError(f"--turns needs a model that can talk; --shape {shape} has no words")
        sizes = 4 if bits is None else bits, 64 if group_size is None else group_size
        config = shape_config(shape, *sizes, layers)
        report = _bench_shape(shape, config, settings, plot is not None)
    if plot:
        draw(report, plot)
    _show(report, plot, as_json)


def _check(model: str | None, shape: str | None, given: list[str]) -> None:
    if shape is None and given:
        raise UsageError(f"{given[0]} belongs to --shape; a model has its own")
    if shape is not None and model is not None:
        raise UsageError(f"--shape {shape} takes no model; leave out {model!r} or --shape")


def _tune(model: str | None, shape: str | None, forget: bool, as_json: bool) -> None:
    from mlx_mixtral.cli.bench_tune import reset, tune_model

    if shape is not None:
        raise UsageError(f"--tune takes a model, not --shape {shape}; the demo will do")
    if forget:
        reset()
    else:
        tune_model(model, as_json)


def _bench_folder(
    name: str | None, settings: "Settings", drawn: bool, memory: str | None, read_ahead: int
) -> "Report":
    """Everything is checked before the first load, which may take minutes."""
    from mlx_mixtral.catalog import default_name, resolve
    from mlx_mixtral.cli.loading import load_model
    from mlx_mixtral.config import read_config
    from mlx_mixtral.lab.bench import bench as measure
    from mlx_mixtral.lab.loads import compare_loads
    from mlx_mixtral.lab.roofline import SMALLEST_PROBE, measure_bandwidth
    from mlx_mixtral.lab.subject import loaded

    folder = resolve(name or default_name())
    settings = settings.ready_for(read_config(folder), drawn)
    with status_line() as tell:
        # While this process holds no weights: there may be memory for one copy only.
        repeat = min(settings.repeat, 3)
        loads = compare_loads(folder, settings.against, repeat, tell) if settings.against else []
    if memory is None:
        subject = loaded(lambda: load_model(name))
        with status_line() as tell:
            return measure(subject, settings, tell, loads)
    longest = max(settings.prompt, *settings.contexts, 0) + settings.generate
    subject = loaded(lambda: load_model(name, None, longest, memory=memory, read_ahead=read_ahead))
    with status_line() as tell:
        # A larger probe would not leave the model the memory that it was given.
        return measure(subject, settings, tell, loads, lambda: measure_bandwidth(SMALLEST_PROBE))


def _bench_shape(shape: str, config: "ModelConfig", settings: "Settings", drawn: bool) -> "Report":
    from mlx_mixtral.cli.progress import progress_bar
    from mlx_mixtral.lab.bench import bench as measure
    from mlx_mixtral.lab.subject import random_subject

    settings = settings.ready_for(config, drawn)
    with progress_bar(f"making {shape} of random weights") as advance:
        subject = random_subject(shape, config, settings, advance)
    with status_line() as tell:
        return measure(subject, settings, tell)


def _show(report: "Report", picture: Path | None, as_json: bool) -> None:
    from mlx_mixtral.cli.bench_report import lines_of
    from mlx_mixtral.cli.printable import printable

    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    print(printable("\n".join(lines_of(report))))
    if picture:
        print(f"\nspeed over context: {picture}")
