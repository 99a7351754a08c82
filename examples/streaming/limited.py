"""Run a command under a memory limit of the operating system, and tell what became of it.

    python examples/streaming/limited.py 1.6GB mixtral-mlx generate MODEL --memory 1.4GB -p Hello

Linux, root, with the memory controller of version 1 or 2 of control groups. Swap is not used.
What the system caches of files counts too, as it does in such a group.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from mlx_mixtral.budget import Budget

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


def run_limited(limit: int, command: list[str], seconds: float = 600) -> dict:
    """Output, exit code and peak of a command that may take ``limit`` bytes, for so long."""
    old = V1.is_dir()
    group = (V1 if old else V2) / f"limited-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
        if not old:
            (group / "memory.swap.max").write_text("0")
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None,
        )
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += f"\nnot done after {seconds:.0f} s"
        took = time.perf_counter() - start
        peak = group / ("memory.max_usage_in_bytes" if old else "memory.peak")
        hits = group / ("memory.failcnt" if old else "memory.events")
        usage = int(peak.read_text())
        faults = [n for n in (group / "memory.stat").read_text().splitlines() if "pgmajfault" in n]
        told = {"limit": limit, "code": process.returncode, "seconds": round(took, 1)}
        told |= {"peak": usage, "at_the_limit": hits.read_text().split()[-1]}
        return told | {"faults": int(faults[0].split()[1]), "out": out, "err": err}
    finally:
        group.rmdir()


if __name__ == "__main__":
    limit = Budget.of(sys.argv[1]).bytes
    assert limit, "a limit in bytes, such as 1.6GB"
    print(json.dumps(run_limited(limit, sys.argv[2:]), indent=1))
