"""The machine that was measured."""

from __future__ import annotations

import os
import platform
import resource
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from mlx_mixtral.memory import total_memory


@dataclass(frozen=True)
class Machine:
    """Where it ran."""

    system: str
    device: str
    cores: int
    memory_bytes: int
    versions: dict[str, str]


def machine() -> Machine:
    """What a reader of the figures has to know of where they come from."""
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        device=f"{mx.device_info().get('device_name', 'unknown')} ({'GPU' if on_gpu() else 'CPU'})",
        cores=os.cpu_count() or 1,
        memory_bytes=total_memory(),
        versions={name: version(name) for name in ("mlx-mixtral", "mlx", "mlx-lm")},
    )


def on_gpu() -> bool:
    """Whether MLX computes on a GPU."""
    return bool(mx.default_device() != mx.Device(mx.cpu))


def peak_process_bytes() -> int:
    """The most physical memory that this process took so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: Linux hands that of the parent on to a program it starts.
        peaks = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(peaks[0].split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes
