"""``mixtral-mlx bench --tune`` and ``--tune-reset``."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_mixtral.cli.bench_report import table
from mlx_mixtral.cli.status import status_line

if TYPE_CHECKING:
    from mlx_mixtral.lab.trial import Trial
    from mlx_mixtral.lab.tune import Finding, Found
    from mlx_mixtral.tuning import Tuning

REPEAT = 3


def reset() -> None:
    """Forget the settings."""
    from mlx_mixtral.tuning import remove_tuning, tuning_file

    if removed := remove_tuning():
        print(f"removed {removed}; the defaults hold")
    else:
        print(f"nothing to forget: there is no {tuning_file()}")


def tune_model(name: str | None, as_json: bool) -> None:
    """Try the settings out with a model, tell what they gained, and keep them."""
    from mlx_mixtral.blas import use_system_blas
    from mlx_mixtral.catalog import default_name, resolve
    from mlx_mixtral.config import read_config

    # Not ``before_mlx``: what was tuned before would look like a user's settings.
    blas = use_system_blas()
    from mlx_mixtral.lab.machine import on_gpu
    from mlx_mixtral.lab.trial import try_out
    from mlx_mixtral.lab.tune import knobs_of, tune, works_of
    from mlx_mixtral.tuning import tuning_record, write_tuning

    folder = resolve(name or default_name())
    config = read_config(folder)
    works = works_of(config)
    knobs = knobs_of(config, on_gpu(), blas, os.environ)
    with tempfile.TemporaryDirectory() as place, status_line() as tell:

        def trial(tuning: "Tuning", names: Sequence[str]) -> "Trial":
            file = Path(place) / "tuning.json"
            file.write_text(tuning_record(tuning))
            return try_out(folder, [works[name] for name in names], REPEAT, file)

        found = tune(knobs, list(works), trial, tell)
    file = write_tuning(found.tuning, model=folder.name, gains=found.gains)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        print("\n".join([*_lines(found), f"kept in {file}; --tune-reset removes it"]))


def _lines(found: "Found") -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("setting", "for", "kept", "gain", "tried, and their speed over the default's")
    ]
    rows += [_row(finding) for finding in found.findings]
    gains = ", ".join(f"{work} {gain:.2f}x" for work, gain in found.gains.items())
    if not found.tuning.given:
        return [*table(rows), "the defaults are the best here"]
    return [*table(rows), f"all together: {gains}; the same answers as before"]


def _row(finding: "Finding") -> tuple[str, ...]:
    tried = ", ".join(
        f"{value} {ratio:.2f}x" if ratio else f"{value} other answer"
        for value, ratio in finding.tried.items()
    )
    if finding.kept is None:
        return (finding.name, finding.work, "default", "", tried)
    return (finding.name, finding.work, str(finding.kept), f"{finding.gain:.2f}x", tried)
