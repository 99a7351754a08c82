"""The Macs: what their chips read from memory, how much of it they come with, and which this is.

Sources: Apple's technical specifications (support.apple.com/specs) and announcements
(apple.com/newsroom), through the tables of Ars Technica (M2 to M4, October 2024), MacRumors
(M5 Pro and Max, 3 March 2026) and, for the machines of August 2026, the specifications at
apple.com/mac-mini and apple.com/mac-studio as github.com/rlindsey2/sunkcost quotes them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass

from mlx_mixtral.errors import UsageError

GIB = 1 << 30  # what Apple calls a gigabyte of memory


@dataclass(frozen=True)
class Chip:
    """One version of a chip; those of one name differ in the memories they come with.

    Attributes:
        bandwidth: bytes a second between memory and GPU, as Apple states it.
        memories: gigabytes of memory, each of 2**30 bytes.
    """

    name: str
    bandwidth: float
    memories: tuple[int, ...]


def _chip(name: str, gigabytes_a_second: float, *memories: int) -> Chip:
    return Chip(name, gigabytes_a_second * 1e9, memories)


CHIPS = (
    _chip("M1", 68.25, 8, 16),
    _chip("M1 Pro", 200, 16, 32),
    _chip("M1 Max", 400, 32, 64),
    _chip("M1 Ultra", 800, 64, 128),
    _chip("M2", 100, 8, 16, 24),
    _chip("M2 Pro", 200, 16, 32),
    _chip("M2 Max", 400, 32, 64, 96),
    _chip("M2 Ultra", 800, 64, 128, 192),
    _chip("M3", 100, 8, 16, 24),
    _chip("M3 Pro", 150, 18, 36),
    _chip("M3 Max", 300, 36, 96),
    _chip("M3 Max", 400, 48, 64, 128),
    _chip("M3 Ultra", 819, 96, 256, 512),
    _chip("M4", 120, 16, 24, 32),
    _chip("M4 Pro", 273, 24, 48, 64),
    _chip("M4 Max", 410, 36),
    _chip("M4 Max", 546, 48, 64, 128),
    _chip("M5", 153, 16, 24, 32),
    _chip("M5 Pro", 307, 24, 48, 64),
    _chip("M5 Max", 460, 36),
    _chip("M5 Max", 614, 48, 64, 128),
    _chip("M5 Ultra", 1200, 96, 256, 512),
    _chip("M6", 153, 16),
    _chip("M6", 170, 24, 32),
)
MEMORIES = tuple(sorted({memory for chip in CHIPS for memory in chip.memories}))


@dataclass(frozen=True)
class Mac:
    """A machine to plan for.

    Attributes:
        memory: bytes.
        gpu_limit: bytes that macOS lets the GPU take.
        measured: whether the machine itself said so; else see ``usual_gpu_limit``.
    """

    chip: Chip
    memory: int
    gpu_limit: int
    measured: bool = False

    @property
    def gigabytes(self) -> int:
        """Of memory, as Apple counts them."""
        return self.memory // GIB


def usual_gpu_limit(memory: int) -> int:
    """Bytes that macOS lets a GPU take of ``memory`` bytes, unless told otherwise.

    Metal's recommendedMaxWorkingSetSize as llama.cpp prints it was two thirds with 16, 24 and
    32 GB (10922, 16384, 21845 MB) and three quarters with 64 and 96 GB (49152, 73728 MB; its
    issues 434, 1870, 3213). macOS 26 gives more: 74 % of 16 GB, 84 % of 128 GB. This is what
    every version gives.
    """
    return memory * 2 // 3 if memory <= 32 * GIB else memory * 3 // 4


def chips_called(name: str) -> tuple[Chip, ...]:
    """The versions of ``M3 Max``, ``Apple M3 Max`` or ``m3max``.

    Raises:
        UsageError: there are none; the message lists the known ones.
    """
    match = re.fullmatch(r"(?:apple)?[ -]*m(\d+)[ -]*(pro|max|ultra)?", name.strip().lower())
    wanted = f"M{match[1]} {(match[2] or '').title()}".strip() if match else None
    found = tuple(chip for chip in CHIPS if chip.name == wanted)
    if not found:
        known = ", ".join(dict.fromkeys(chip.name for chip in CHIPS))
        raise UsageError(f"chip {name!r} is unknown; known are {known}")
    return found


def mac(chip: str, gigabytes: int) -> Mac:
    """A Mac by its chip and its memory.

    Raises:
        UsageError: no such chip, or none with so much memory.
    """
    versions = chips_called(chip)
    for version in versions:
        if gigabytes in version.memories:
            memory = gigabytes * GIB
            return Mac(version, memory, usual_gpu_limit(memory))
    sizes = sorted(size for version in versions for size in version.memories)
    listed = " or ".join(map(str, sizes))
    raise UsageError(f"no {versions[0].name} has {gigabytes} GB of memory; it comes with {listed}")


def macs_called(chip: str) -> tuple[Mac, ...]:
    """All Macs with a chip, by memory. Raises UsageError for an unknown one."""
    sizes = sorted(size for version in chips_called(chip) for size in version.memories)
    return tuple(mac(chip, size) for size in sizes)


def this_mac() -> Mac | None:
    """The machine that this runs on; None where it is no Mac.

    Raises:
        UsageError: a Mac without an Apple chip, or with one that is newer than this table.
    """
    if sys.platform != "darwin":
        return None
    import mlx.core as mx

    memory = int(_sysctl("hw.memsize"))
    versions = chips_called(_sysctl("machdep.cpu.brand_string"))
    fitting = [chip for chip in versions if memory // GIB in chip.memories]
    granted = mx.device_info().get("max_recommended_working_set_size")
    limit = int(granted) if granted else usual_gpu_limit(memory)
    # A memory that the table lacks: the slower version promises nothing wrong.
    return Mac((fitting or versions)[0], memory, limit, measured=bool(granted))


def _sysctl(name: str) -> str:
    done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=True)
    return done.stdout.strip()
