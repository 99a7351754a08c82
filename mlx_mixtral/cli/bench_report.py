"""What ``mixtral-mlx bench`` found, for a person."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlx_mixtral.cli.sizes import duration, size
from mlx_mixtral.cli.streamed_view import rows

if TYPE_CHECKING:
    from mlx_mixtral.lab.report import Report
    from mlx_mixtral.lab.runs import Spread

# A Mac's system-level cache is 8 to 96 MB.
SMALL = 96_000_000


def lines_of(report: "Report") -> list[str]:
    """The whole report; parts that were not measured are left out."""
    parts = [
        _about(report),
        _speeds(report),
        _ceiling(report),
        _streams(report),
        _loads(report),
        _contexts(report),
        _turns(report),
        _reported(report),
    ]
    return [line for part in parts if part for line in [*part, ""]][:-1]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length, their columns under each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def rate(value: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(speed: "Spread") -> str:
    """The median, and in brackets lowest and highest."""
    return f"{rate(speed.median)} ({rate(speed.low)}-{rate(speed.high)})"


def _about(report: "Report") -> list[str]:
    """What was measured, where and how."""
    machine, settings = report.machine, report.settings
    about = f"{_layers(report)}, {report.bits} bit"
    if report.experts:
        about += f", {report.experts_per_token} of {report.experts} experts a token"
    lines = [f"{report.model}: {about}"]
    if report.note:
        lines += report.note.split("; ")
    lines += [
        f"{machine.device}, {machine.cores} cores, {size(machine.memory_bytes)}, {machine.system}",
        ", ".join(f"{name} {number}" for name, number in machine.versions.items()),
        *(
            ["mlx-lm-f32: mlx-lm with float32 weights or scales"]
            * ("mlx-lm-f32" in settings.against)
        ),
        f"{settings.prompt} tokens in, {settings.generate} out; median of {settings.repeat} "
        "(lowest-highest)",
    ]
    if report.tuning:
        tuned = ", ".join(f"{name} {value}" for name, value in report.tuning.items())
        lines.append(f"tuned for this machine: {tuned}")
    if report.tuning_note:
        lines.append(f"not tuned: {report.tuning_note}")
    return lines


def _layers(report: "Report") -> str:
    return "1 layer" if report.layers == 1 else f"{report.layers} layers"


def _speeds(report: "Report") -> list[str]:
    """A row a side."""
    rows: list[tuple[str, ...]] = [("", "first token, s", "prompt tok/s", "answer tok/s")]
    sides = [("mlx-mixtral", report.ours)]
    sides += [(o.name, o.speeds) for o in report.opponents if o.speeds]
    for name, speeds in sides:
        found = (speeds.ttft_s, speeds.prefill_tps, speeds.decode_tps)
        rows.append((name, *map(spread, found)))
    for o in report.opponents:
        if o.prefill_ratio and o.decode_ratio:
            rows.append(
                (f"  ours / {o.name}", "", f"{o.prefill_ratio:.2f}x", f"{o.decode_ratio:.2f}x")
            )
    failed = [f"{o.name} does not run this: {o.error}" for o in report.opponents if o.error]
    return table(rows) + failed


def _ceiling(report: "Report") -> list[str]:
    """Load time, memory, and the roofline."""
    read, band = report.traffic, report.bandwidth
    parts = [("shared weights", read.shared)]
    if read.experts:
        parts.append((f"{report.experts_per_token} of {report.experts} experts", read.experts))
    parts.append((f"keys and values of {read.context} tokens", read.kv))
    rows = [("load", duration(report.load_s))] if report.load_s is not None else []
    rows += [
        (
            "peak memory",
            f"{size(report.peak_array_bytes)} of arrays, "
            f"{size(report.peak_process_bytes)} of the process",
        ),
        ("read a token", size(read.total)),
        *(("", f"{size(amount)} {what}") for what, amount in parts),
        (
            "memory bandwidth",
            f"{band.read / 1e9:.1f} GB/s read, {band.copy / 1e9:.1f} GB/s copied, "
            "as MLX reaches it",
        ),
        (
            "ceiling",
            f"{rate(report.ceiling_tps)} tok/s; the answer reached {report.reached:.0%} of it",
        ),
    ]
    if read.total < SMALL:
        rows.append(("", "(so little is read that caches hold it: no real ceiling)"))
    return table(rows)


def _streams(report: "Report") -> list[str]:
    """Experts from disk."""
    if not (streams := report.streams):
        return []
    fewest, most = min(streams.slots), max(streams.slots)
    slots = f"{fewest}" if fewest == most else f"{fewest} or {most}"
    return table(
        [
            ("from disk", f"{slots} of {streams.experts} experts a layer are in memory"),
            ("for the prompt", f"{size(streams.prompt_bytes)} read"),
            *rows(streams.answer),
            ("", f"{size(streams.needed)} a token for the misses alone"),
            ("", f"{size(streams.sequential)}/s from end to end, in one thread"),
        ]
    )


def _loads(report: "Report") -> list[str]:
    """Loading, each time in a process of its own."""
    if not report.loads:
        return []
    rows = [("loading", "seconds", "ours/it", "arrays", "with a run", "process", "with a run")]
    for side in report.loads:
        if side.seconds and (one := side.first):
            ratio = f"{side.ratio:.2f}x" if side.ratio else ""
            arrays = size(one.array_bytes), size(one.run_array_bytes)
            process = size(one.process_bytes), size(one.run_process_bytes)
            rows.append((side.name, rate(side.seconds.median), ratio, *arrays, *process))
    failed = [
        f"{side.name} does not load this: {side.error}" for side in report.loads if side.error
    ]
    return table(rows) + failed


def _contexts(report: "Report") -> list[str]:
    """Milliseconds a token after each context, and how they grow."""
    if not (found := report.contexts):
        return []
    names = list(found.slopes)
    rows = [("answer after", *names, "ceiling")]
    for point, ceiling in zip(found.points, report.ceilings, strict=True):
        cells = [
            f"{rate(point.decode_ms[name].median)} ms, {rate(point.decode_tps[name].median)}/s"
            for name in names
        ]
        rows.append((f"{point.context} tokens", *cells, f"{rate(ceiling)}/s"))
    slopes = [f"{found.slopes[name].median:+.2f} ms" for name in names]
    rows.append(("each 1,000 more", *slopes, ""))
    return [*table(rows), "(caches filled with random keys and values, the same for all)"]


def _turns(report: "Report") -> list[str]:
    """Seconds to the first token, turn by turn."""
    if not report.turns:
        return []
    names = list(report.turns[0].ttft_s)
    rows = [("turn", "tokens", "new", *(f"{name}, s" for name in names), "all anew, s")]
    for number, turn in enumerate(report.turns, 1):
        waits = [*turn.ttft_s.values(), turn.whole_s]
        rows.append((str(number), str(turn.context), str(turn.new), *map(rate, waits)))
    return ["first token of each turn of a conversation:", *table(rows)]


def _reported(report: "Report") -> list[str]:
    """Other people's figures, marked as such."""
    lines = ["Reported by others for Mixtral 8x7B, not measured here (answer tok/s):"]
    for r in report.reported_by_others:
        lines.append(f"  {r.decode_tps:5.1f}  {r.machine}, {r.program} ({r.source})")
    ours = f"{report.model}, {report.bits} bit, {_layers(report)}"
    return [*lines, f"  {rate(report.ours.decode_tps.median):>5}  measured here: {ours}"]
