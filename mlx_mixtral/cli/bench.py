"""``mixtral-mlx bench``: how fast a model runs on this machine, and what the ceiling is."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_mixtral.cli.options import ModelName
from mlx_mixtral.cli.sizes import duration, size
from mlx_mixtral.errors import UsageError

if TYPE_CHECKING:
    from mlx_mixtral.lab.bench import Report, Settings, Spread, Subject


def bench(
    model: ModelName = None,
    prompt: Annotated[int, typer.Option("--prompt", metavar="N", help="Tokens in.")] = 128,
    generate: Annotated[int, typer.Option("--generate", metavar="N", help="Tokens out.")] = 64,
    repeat: Annotated[int, typer.Option("--repeat", metavar="N", help="Runs that count.")] = 7,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="mlx-lm: measure it in turns on the same weights. mlx-lm-f32: with float32 "
            "scales, the fairer opponent without a GPU. Repeatable.",
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="8x7b, 8x22b or 7b: random weights of this shape, made here; no download.",
        ),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(metavar="N", help="With --shape: bits a weight. Default: 4.")
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(metavar="N", help="With --shape: weights a scale. Default: 64.")
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --shape: only so many layers, for small machines."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw speed over context, up to --prompt tokens."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as data.")] = False,
) -> None:
    """Measure a model here: tokens a second, memory, and how near the ceiling they come.

    The ceiling is the memory's bandwidth, measured too, over the bytes that a token reads.
    """
    parts = {"--bits": bits, "--group-size": group_size, "--layers": layers}
    if shape is None and (given := [name for name, value in parts.items() if value is not None]):
        raise UsageError(f"{given[0]} belongs to --shape; a model has its own")
    if shape is not None and model is not None:
        raise UsageError(f"--shape {shape} takes no model; leave out {model!r} or --shape")
    from mlx_mixtral.blas import use_system_blas

    use_system_blas()  # before MLX is imported
    from mlx_mixtral.lab.bench import Settings
    from mlx_mixtral.lab.bench import bench as measure
    from mlx_mixtral.lab.plot import check_plot
    from mlx_mixtral.lab.plot import plot as draw

    settings = Settings(prompt, generate, repeat, tuple(against or ()), plot is not None)
    if plot:
        check_plot(plot)
    if shape is None:
        subject = _loaded(model)
    else:
        subject = _random(
            shape,
            4 if bits is None else bits,
            64 if group_size is None else group_size,
            layers,
            settings,
        )
    with _status() as tell:
        report = measure(subject, settings, tell)
    if plot:
        draw(report, plot)
    _show(report, plot, as_json)


def _loaded(name: str | None) -> "Subject":
    from mlx_mixtral.cli.loading import load_model
    from mlx_mixtral.lab.bench import loaded

    return loaded(lambda: load_model(name))


def _random(
    shape: str, bits: int, group_size: int, layers: int | None, settings: "Settings"
) -> "Subject":
    from mlx_mixtral.cli.progress import progress_bar
    from mlx_mixtral.lab.bench import random_subject

    with progress_bar(f"making {shape} of random weights") as advance:
        return random_subject(shape, bits, group_size, layers, settings, advance)


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """What is being measured, on standard error where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return

    # One line written over, no spinner: redrawing one would disturb what is measured.
    def tell(what: str) -> None:
        print(f"\r\x1b[K{what} ...", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# --- showing


def _show(report: "Report", picture: Path | None, as_json: bool) -> None:
    from mlx_mixtral.cli.printable import printable

    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    print(printable("\n".join(_lines(report))))
    if picture:
        print(f"\nspeed over context: {picture}")


def _lines(report: "Report") -> list[str]:
    """The whole report for a person."""
    machine, settings = report.machine, report.settings
    about = f"{_layers(report)}, {report.bits} bit"
    if report.experts:
        about += f", {report.experts_per_token} of {report.experts} experts a token"
    lines = [f"{report.model}: {about}"]
    if report.note:
        lines.append(report.note)
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    lines += [
        f"{machine.device}, {machine.cores} cores, {size(machine.memory_bytes)}, "
        f"{machine.system}; {versions}",
        f"{settings.prompt} tokens in, {settings.generate} out; median of {settings.repeat} "
        "(lowest-highest)",
        "",
        *_speeds(report),
        "",
        *_ceiling(report),
        "",
        *_reported(report),
    ]
    return lines


def _layers(report: "Report") -> str:
    return "1 layer" if report.layers == 1 else f"{report.layers} layers"


def _speeds(report: "Report") -> list[str]:
    """A row a side."""
    rows = [("", "first token", "prompt tok/s", "answer tok/s")]
    sides = [("mlx-mixtral", report.ours)]
    sides += [(o.name, o.speeds) for o in report.opponents if o.speeds]
    for name, speeds in sides:
        first = speeds.ttft_s
        rows.append(
            (
                name,
                f"{first.median:.3g} s ({first.low:.3g}-{first.high:.3g})",
                _spread(speeds.prefill_tps),
                _spread(speeds.decode_tps),
            )
        )
    for o in report.opponents:
        if o.prefill_ratio and o.decode_ratio:
            rows.append(
                (f"  ours / {o.name}", "", f"{o.prefill_ratio:.2f}x", f"{o.decode_ratio:.2f}x")
            )
    widths = [max(len(row[n]) for row in rows) for n in range(4)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return lines + [f"{o.name} does not run this: {o.error}" for o in report.opponents if o.error]


def _spread(speed: "Spread") -> str:
    return f"{_rate(speed.median)} ({_rate(speed.low)}-{_rate(speed.high)})"


def _rate(value: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ceiling(report: "Report") -> list[str]:
    """Load time, memory, and the roofline."""
    read, band = report.traffic, report.bandwidth
    parts = [f"shared weights {size(read.shared)}"]
    if read.experts:
        chosen = f"{report.experts_per_token} of {report.experts}"
        parts.append(f"{chosen} experts {size(read.experts)}")
    parts.append(f"keys and values of {read.context} tokens {size(read.kv)}")
    lines = [f"{'load':<20}{duration(report.load_s)}"] if report.load_s is not None else []
    lines += [
        f"{'peak memory':<20}{size(report.peak_array_bytes)} of arrays, "
        f"{size(report.peak_process_bytes)} of the process",
        f"{'read a token':<20}{size(read.total)}: {', '.join(parts)}",
        f"{'memory bandwidth':<20}{band.read / 1e9:.1f} GB/s read, {band.copy / 1e9:.1f} GB/s "
        f"copied, as MLX reaches it here",
        f"{'ceiling':<20}{_rate(report.ceiling_tps)} tok/s; the answer reached "
        f"{report.reached:.0%} of it",
    ]
    if read.total < SMALL:
        lines.append(f"{'':<20}(so little is read that caches hold it: no real ceiling)")
    return lines


# A Mac's system-level cache is 8 to 96 MB.
SMALL = 96_000_000


def _reported(report: "Report") -> list[str]:
    """Other people's figures, marked as such."""
    lines = ["Reported by others for Mixtral 8x7B, not measured here (answer tok/s):"]
    for r in report.reported_by_others:
        lines.append(f"  {r.decode_tps:5.1f}  {r.machine}, {r.program} ({r.source})")
    ours = f"{report.model}, {report.bits} bit, {_layers(report)}"
    return [*lines, f"  {_rate(report.ours.decode_tps.median):>5}  measured here: {ours}"]
