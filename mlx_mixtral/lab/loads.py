"""Loading, by every side in turns: seconds and memory, each load in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_mixtral.config import read_config
from mlx_mixtral.errors import MixtralError
from mlx_mixtral.lab.fresh import fresh
from mlx_mixtral.lab.machine import peak_process_bytes
from mlx_mixtral.lab.opponents import import_theirs, load_theirs, their_side
from mlx_mixtral.lab.runs import OURS, Side, Spread, Tell, measure, our_side, paired, prompt_of
from mlx_mixtral.loading import load_model

PROMPT, ANSWER = 16, 16


@dataclass(frozen=True)
class Load:
    """One load, perhaps with a prompt of 16 tokens and an answer of 16 after it.

    Attributes:
        seconds: until all weights were in memory; imports and tokenizers do not count.
        array_bytes, process_bytes: peaks after loading, of MLX's arrays and of the process.
        run_array_bytes, run_process_bytes: the same after the run; 0 without one.
    """

    seconds: float
    array_bytes: int
    process_bytes: int
    run_array_bytes: int
    run_process_bytes: int


@dataclass(frozen=True)
class Loads:
    """The loads of one side.

    Attributes:
        ratio: our seconds over this side's, the median of the pairs.
        first: the load that a run followed, which tells the peaks.
        error: why it does not load, or does not run once loaded.
    """

    name: str
    seconds: Spread | None = None
    ratio: float | None = None
    first: Load | None = None
    error: str | None = None


def compare_loads(folder: Path, against: Sequence[str], repeat: int, tell: Tell) -> list[Loads]:
    """Ours first, then the opponents'. The files are read beforehand, so that all sides find
    them in the system's cache."""
    tell("reading the files once")
    for file in folder.glob("*.safetensors"):
        _read(file)
    found: dict[str, list[Load]] = {name: [] for name in (OURS, *against)}
    errors: dict[str, str] = {}
    for turn in range(repeat):
        for name, loads in found.items():
            tell(f"{name}: loading, {turn + 1} of {repeat}")
            if name not in errors:
                try:
                    loads.append(_load(name, folder, run=turn == 0))
                except MixtralError as error:
                    if name == OURS:
                        raise
                    errors[name] = str(error)
    return [_summary(name, loads, found[OURS], errors.get(name)) for name, loads in found.items()]


def _load(name: str, folder: Path, run: bool) -> Load:
    arguments = {"folder": str(folder), "run": run}
    if name == OURS:
        return Load(**fresh(load_ours, arguments))
    return Load(**fresh(load_opponent, {"name": name, **arguments}, plain=True))


def _summary(name: str, loads: list[Load], ours: list[Load], error: str | None) -> Loads:
    if error:
        return Loads(name, error=error)
    seconds = [load.seconds for load in loads]
    ratio = None if name == OURS else paired([load.seconds for load in ours], seconds)
    return Loads(name, Spread.of(seconds), ratio, loads[0])


# --- in the process of its own, the network alone: mlx-lm's tokenizers come by way of
# transformers, from code that a folder chooses


def load_ours(folder: str, run: bool) -> dict[str, Any]:
    """As ``loading.load`` does."""
    path = Path(folder)
    config = read_config(path)
    return _measured(path, lambda: our_side(load_model(path, config), config), run)


def load_opponent(name: str, folder: str, run: bool) -> dict[str, Any]:
    """As ``mlx_lm.load`` does."""
    import_theirs()
    path = Path(folder)
    return _measured(path, lambda: their_side(load_theirs(name, path)), run)


def _measured(folder: Path, side: Callable[[], Side], run: bool) -> dict[str, Any]:
    prompt = prompt_of(PROMPT, read_config(folder))
    start = time.perf_counter()
    loaded = side()
    mx.synchronize()
    seconds = time.perf_counter() - start
    after = mx.get_peak_memory(), peak_process_bytes()
    later = (0, 0)
    if run:
        measure(loaded, prompt, ANSWER)
        later = mx.get_peak_memory(), peak_process_bytes()
    return asdict(Load(seconds, *after, *later))


def _read(file: Path) -> None:
    with file.open("rb", buffering=0) as stream:
        while stream.read(1 << 24):
            pass
