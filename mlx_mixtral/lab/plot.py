"""Speed over context as a picture."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from textwrap import wrap
from typing import Any

from mlx_mixtral.errors import UsageError
from mlx_mixtral.lab.report import Report


def check_plot(file: Path) -> None:
    """Before anything is measured: whether a picture can be drawn and written there.

    Raises:
        UsageError: matplotlib is not installed, or the file cannot be a picture's.
    """
    _matplotlib("figure")
    if file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {file}: the name has to end in .png, .svg or .pdf")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"--plot {file}: there is no folder {file.parent}")


def plot(report: Report, file: Path) -> None:
    """Tokens a second over context, a line a side, and the ceiling above them.

    Raises:
        ValueError: the report has no contexts.
    """
    if not report.contexts:
        raise ValueError("the report has no contexts")
    points = report.contexts.points
    figure = _matplotlib("figure").Figure(figsize=(7.2, 4.4), layout="constrained")
    axes: Any = figure.add_subplot()
    at, ceilings = [point.context for point in points], report.ceilings
    label = f"ceiling at {report.bandwidth.best / 1e9:.0f} GB/s"
    axes.plot(at, ceilings, "--", color="0.45", label=label)
    for name in points[0].decode_tps:
        spreads = [point.decode_tps[name] for point in points]
        medians = [spread.median for spread in spreads]
        (line,) = axes.plot(at, medians, "o-", label=name)
        lows, highs = [s.low for s in spreads], [s.high for s in spreads]
        axes.fill_between(at, lows, highs, alpha=0.2, color=line.get_color(), linewidth=0)
    slowest = min(s.median for p in points for s in p.decode_tps.values())
    if max(ceilings) > 8 * slowest:  # else the lines below would all lie on the floor
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("context (tokens before the answer)")
    axes.set_ylabel("tokens a second")
    title = [f"{report.model}, {report.layers} layers, {report.bits} bit", *wrap(report.note, 80)]
    title.append(f"{report.machine.device}, {report.machine.system}")
    axes.set_title("\n".join(title), fontsize=9)
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, dpi=150)


def _matplotlib(module: str) -> Any:
    """By name, so that types are checked alike whether it is installed or not."""
    try:
        return import_module(f"matplotlib.{module}")
    except ImportError:
        raise UsageError(
            "--plot needs matplotlib: pip install 'mlx-mixtral[bench]', or pip install matplotlib"
        ) from None
