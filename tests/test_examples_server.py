"""The measurements of the engine run, on the demo model and as short as they can be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SERVER = Path(__file__).parent.parent / "examples" / "server"


def printed(name: str, *options: str) -> str:
    run = subprocess.run(
        [sys.executable, SERVER / name, *options], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_throughput() -> None:
    lines = printed("throughput.py", "--tokens", "3", "--requests", "1", "2").splitlines()
    assert lines[0].split()[:4] == ["requests", "ours", "mlx-lm", "ratio"]
    rows = [[float(word) for word in line.split()] for line in lines[1:]]
    assert [row[0] for row in rows] == [1, 2]
    assert all(row[3] > 0 for row in rows)


def test_stall() -> None:
    out = printed("stall.py", "--prompt", "300", "--answers", "2")
    assert len(re.findall(r"\d+ ms at most", out)) == 2
    assert re.search(r"first token of that prompt after \d+\.\d+ s", out)


def test_drafts() -> None:
    out = printed("drafts.py", "--requests", "1", "--repeat", "1")
    assert "not the same" not in out
    rows = {line[:12].strip(): line[12:].split() for line in out.splitlines()[1:]}
    assert set(rows) == {"quoting", "editing", "a new story", "JSON"}
    assert rows["a new story"][-1] == "0%"
    for kind in ("quoting", "editing", "JSON"):
        assert float(rows[kind][-1].rstrip("%")) > 30
