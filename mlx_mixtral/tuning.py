"""Settings that are best for one machine, found by ``mixtral-mlx bench --tune``.

How many operations a GPU should get at once, from how many rows sorting pays: that differs by
chip, so it is tried out and kept in a small file of the user's configuration folder
(``MIXTRAL_MLX_HOME`` moves it with everything else, ``MIXTRAL_MLX_TUNING`` names another). A
file holds for one machine with one MLX and one version of this program. Any other file, and
a damaged one, changes nothing: every setting has a default.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LARGEST_FILE = 1 << 16
LARGEST_VALUE = {
    "prefill_chunk": 1 << 14,  # of which 2 experts each make MLX's limit of sorted rows
    "sort_from": 1 << 20,
    "unpack_from": 1 << 20,
    "ops_per_buffer": 100_000,
    "mb_per_buffer": 1_000_000,
}
ENVIRONMENT = {
    "ops_per_buffer": "MLX_MAX_OPS_PER_BUFFER",
    "mb_per_buffer": "MLX_MAX_MB_PER_BUFFER",
}


@dataclass(frozen=True)
class Tuning:
    """The settings; None leaves one at its default.

    Attributes:
        prefill_chunk: tokens of a prompt computed at once.
        sort_from: choices of experts (tokens times experts a token) from which rows are
            sorted by expert.
        unpack_from: CPU backend: rows from which a matrix is unpacked for OpenBLAS.
        ops_per_buffer, mb_per_buffer: GPU: operations and, as MLX counts, millions of
            elements that are handed over at once.

    Raises:
        ValueError: a value that is not a number in range.
    """

    prefill_chunk: int | None = None
    sort_from: int | None = None
    unpack_from: int | None = None
    ops_per_buffer: int | None = None
    mb_per_buffer: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, most = getattr(self, field.name), LARGEST_VALUE[field.name]
            if value is not None and (type(value) is not int or not 1 <= value <= most):
                raise ValueError(f"{field.name} is not a whole number from 1 to {most}")

    @property
    def given(self) -> dict[str, int]:
        """The settings that are not at their defaults."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def environment(self) -> dict[str, str]:
        """What MLX has to find in the environment when it is imported."""
        return {ENVIRONMENT[name]: str(n) for name, n in self.given.items() if name in ENVIRONMENT}

    def but(self, name: str, value: int) -> Tuning:
        """The same with one setting changed."""
        return replace(self, **{name: value})


def tuned() -> Tuning:
    """The settings for this machine. Does not import MLX."""
    return read_tuning()[0]


@cache
def read_tuning() -> tuple[Tuning, str | None]:
    """What the file holds for this machine, and if it is there and not used, why.

    A damaged file is told on standard error too: it should be there and cannot serve.
    """
    path = tuning_file()
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        return Tuning(), None
    except OSError as error:
        return Tuning(), _told(path, f"cannot be read ({error.strerror})")
    try:
        if len(content) > LARGEST_FILE:
            raise ValueError("too large")
        record = json.loads(content)
        if record["machine"] != this_machine():
            return Tuning(), f"{path} is of another machine or version"
        return Tuning(**record["settings"]), None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Tuning(), _told(path, f"is damaged ({type(error).__name__})")


def _told(path: Path, what: str) -> str:
    message = f"{path} {what}, so defaults are used; `mixtral-mlx bench --tune-reset` removes it"
    print(f"note: {message}", file=sys.stderr)
    return message


def write_tuning(tuning: Tuning, **notes: Any) -> Path:
    """Keep the settings for this machine: whole, or not at all. Returns the file.

    Args:
        notes: what a reader of the file may want to know besides.
    """
    path = tuning_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(tuning_record(tuning, **notes), encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    read_tuning.cache_clear()
    return path


def tuning_record(tuning: Tuning, **notes: Any) -> str:
    """What a file says that holds for this machine."""
    record = {"machine": this_machine(), "settings": tuning.given, **notes}
    return json.dumps(record, indent=1) + "\n"


def remove_tuning() -> Path | None:
    """Go back to the defaults; the file that was removed, if there was one."""
    path = tuning_file()
    try:
        path.unlink()
    except FileNotFoundError:
        return None
    read_tuning.cache_clear()
    return path


def tuning_file() -> Path:
    """Where the settings are kept; the file need not exist."""
    if path := os.environ.get("MIXTRAL_MLX_TUNING"):
        return Path(path)
    if home := os.environ.get("MIXTRAL_MLX_HOME"):
        return Path(home).expanduser() / "tuning.json"
    import platformdirs

    return Path(platformdirs.user_config_dir("mixtral-mlx")) / "tuning.json"


# --- the machine, without asking MLX


def this_machine() -> dict[str, str]:
    """What settings hold for: the chip, MLX and what it computes on, and this program."""
    backends = ("mlx-metal", "mlx-cuda-13", "mlx-cuda-12", "mlx-cuda", "mlx-cpu")
    backend = next((name for name in backends if _version(name)), "")
    return {
        "chip": _chip(),
        "mlx": f"{_version('mlx')} {backend}".strip(),
        "mlx-mixtral": _version("mlx-mixtral"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _chip() -> str:
    """Such as ``Apple M3 Max``; with NVIDIA's GPUs, theirs too."""
    if sys.platform == "darwin":
        return _sysctl(b"machdep.cpu.brand_string")
    found = _lines(Path("/proc/cpuinfo"), "model name")[:1]
    for card in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        found += _lines(card, "Model")
    return ", ".join([*found, f"{os.cpu_count()} cores"])


def _lines(file: Path, name: str) -> list[str]:
    """The values of all lines ``name : value``."""
    if not file.is_file():
        return []
    pairs = [line.partition(":") for line in file.read_text(errors="replace").splitlines()]
    return [value.strip() for key, _, value in pairs if key.strip() == name]


def _sysctl(name: bytes) -> str:
    size = ctypes.c_size_t(256)
    value = ctypes.create_string_buffer(size.value)
    ctypes.CDLL(None).sysctlbyname(name, value, ctypes.byref(size), None, ctypes.c_size_t(0))
    return value.value.decode(errors="replace")
