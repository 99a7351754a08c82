"""Downloads in processes of their own: when one is killed, nothing that came is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hub import FILES, NAME, SHARDS, WANTED, WHOLE, Fault, Hub, Repo

ROOT = Path(__file__).parent.parent

FETCH = """
import signal
import sys
from pathlib import Path
from convert.sources import connection, hub
from mlx_mixtral.errors import MixtralError
connection.PATIENCE = (0.05,) * 3
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is off
{before}
try:
    hub.download(hub.look({name!r}), Path(sys.argv[1]))
except MixtralError as error:
    sys.exit(f"error: {{error}}")
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def hub():
    with Hub().running() as hub:
        hub.repos[NAME] = Repo(FILES)
        yield hub


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "target"
    path.mkdir()
    return path


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(hub, folder, before="", **env):
    """A process of its own that downloads."""
    code = FETCH.format(name=NAME, before=before)
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder.parent / "home")} | env
    env = {k: v for k, v in os.environ.items() if k != "HF_TOKEN"} | {"NO_PROXY": "*"} | env
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ends(process):
    """What it printed, and how it ended."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_for(condition):
    """Until something happened."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def slow(hub, pause=0.025):
    """About a second for everything."""
    hub.faults = {name: Fault(pause=pause, times=-1) for name in SHARDS}


def is_asked(hub, before):
    return len(hub.log) > before


def test_a_process_of_its_own_is_quiet(hub, folder):
    hub.faults["api"] = Fault(status=500)
    hub.faults[SHARDS[0]] = Fault(cut=100_000)
    assert ends(start(hub, folder)) == (0, "", "")
    assert content(folder) == WHOLE


def test_kill_9_at_any_moment(hub, folder):
    """However often: nothing that was there is fetched again, and the result is the same."""
    slow(hub)
    chance = random.Random(int(os.environ.get("KILL_SEED", "0")))
    for _ in range(int(os.environ.get("KILL_ROUNDS", "4"))):
        complete, parts, asked = left(folder), unfinished(folder), len(hub.log)
        process = start(hub, folder)
        wait_for(partial(is_asked, hub, asked))
        time.sleep(chance.uniform(0, 0.4))
        process.kill()
        process.communicate()
        assert complete <= left(folder)
        check_requests(hub.log[asked:], complete, parts)
    hub.faults = {}
    complete, parts, asked = left(folder), unfinished(folder), len(hub.log)
    assert ends(start(hub, folder)) == (0, "", "")
    check_requests(hub.log[asked:], complete, parts)
    assert content(folder) == WHOLE


def left(folder):
    """The files that are complete."""
    return {path.name for path in folder.iterdir()} & WANTED


def unfinished(folder):
    """How much there is of the others."""
    parts = []
    for path in folder.glob(".*.part"):
        with suppress(FileNotFoundError):  # just renamed
            parts.append(path.read_bytes())
    return {name: len(part) for part in parts for name in WANTED if is_start(name, part)}


def is_start(name, part):
    return bool(part) and len(part) < len(WHOLE[name]) and WHOLE[name].startswith(part)


def check_requests(requests, complete, parts):
    """Nothing complete is asked for, and of the rest only what is not there."""
    assert not complete & {request.file for request in requests}
    for name in WANTED:
        starts = [r.start for r in requests if r.file == name and r.method == "GET"]
        assert set(starts) <= {parts.get(name, 0)}


def test_finished_files_outlive_kill_9(hub, folder):
    slow(hub)
    process = start(hub, folder)
    wait_for(lambda: (folder / SHARDS[0]).exists() and len(hub.fetched(SHARDS[1])))
    process.kill()
    process.communicate()
    done = len(hub.log)
    hub.faults = {}
    assert ends(start(hub, folder)) == (0, "", "")
    assert content(folder) == WHOLE
    assert {request.file for request in hub.log[done:]} == {"api", SHARDS[1]}


def test_ctrl_c(hub, folder):
    hub.faults[SHARDS[0]] = Fault(pause=0.5, times=-1)
    process = start(hub, folder)
    wait_for(lambda: max(unfinished(folder).values(), default=0) > 20_000)
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, out, err = ends(process)
    assert time.monotonic() - pressed < 1.0
    assert (code, out, err) == (130, "", "")
    (part,) = folder.glob(".*.part")
    size = part.stat().st_size
    assert FILES[SHARDS[0]].startswith(part.read_bytes())
    hub.faults.clear()
    assert ends(start(hub, folder)) == (0, "", "")
    assert content(folder) == WHOLE
    assert [start for start, _ in hub.fetched(SHARDS[0])] == [0, size]


def test_a_file_that_may_not_grow(hub, folder):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000))"
    code, out, err = ends(start(hub, folder, before=limit))
    assert (code, out) == (1, "")
    assert err.startswith("error: cannot write")
    assert SHARDS[0] in err
    assert err.count("\n") == 1
    assert ends(start(hub, folder)) == (0, "", "")
    assert content(folder) == WHOLE
    assert [start for start, _ in hub.fetched(SHARDS[0])] == [0, 250_000]


def test_offline_by_the_environment(hub, folder):
    code, _, err = ends(start(hub, folder, HF_HUB_OFFLINE="1"))
    assert code == 1
    assert "HF_HUB_OFFLINE is set" in err
    assert err.count("\n") == 1
    assert not hub.log
