"""From a name to a model that answers: ``pull``, ``inspect``, ``convert`` against a hub."""

import importlib.resources
import json
import os
import random
import signal
import subprocess
import time
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from checkpoints import tiny_config, write_hf
from hub import Fault, Hub, Repo

from convert.pipeline import convert
from convert.plan import plan
from convert.readers.detect import open_source
from convert.recipe import uniform

NAME = "mistralai/Tiny-Mixtral"
TOKENIZER = importlib.resources.files("mistral_common") / "data" / "tokenizer.model.v1"
CONFIG = tiny_config(vocab_size=32000, hidden_size=64, num_hidden_layers=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_hf(tmp_path_factory.mktemp("hf"), CONFIG, dtype="BF16", shards=5)
    (folder / "tokenizer.model").write_bytes(TOKENIZER.read_bytes())
    return folder


@pytest.fixture
def hub(checkpoint):
    server = Hub()
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    files |= {"README.md": b"# Tiny", "consolidated.00.pt": b"the same once more"}
    server.repos[NAME] = Repo(files)
    with server.running():
        yield server


@pytest.fixture
def start(spawn, hub, tmp_path):
    """Starts a command in a process of its own, which knows of our hub alone."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf-home"),
        "MIXTRAL_MLX_HOME": str(tmp_path / "home"),
    }

    return partial(spawn, env=environment)


@pytest.fixture
def run(start):
    def run(*arguments: object) -> tuple[int, str, str]:
        process = start(*arguments)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return process.returncode, out, err

    return run


def shards(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.safetensors"))


def content(folder: Path) -> dict[str, str]:
    """What tells each file from others; bytes would keep a failing test busy for minutes."""
    files = [file for file in folder.iterdir() if file.name != "manifest.json"]
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    convert(plan(open_source(checkpoint), uniform(4), "better"), out)
    return content(out)


def test_pull_keeps_what_a_model_needs(run, hub, checkpoint, tmp_path):
    code, out, err = run("pull", NAME)
    folder = tmp_path / "home" / "models" / "Tiny-Mixtral"
    assert code == 0, err
    assert content(folder) == content(checkpoint)
    assert "licence apache-2.0" in err
    assert out.endswith("run it: mixtral-mlx chat Tiny-Mixtral\n")
    assert run("verify", "Tiny-Mixtral")[0] == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"] == f"{NAME}@{hub.repos[NAME].commit}"
    assert not list(folder.parent.glob(".*"))
    hub.log.clear()
    assert run("pull", NAME)[0] == 0  # there already
    assert not hub.asked()
    code, out, _ = run("generate", "Tiny-Mixtral", "-p", "Hello", "--max-tokens", "3")
    assert code == 0


def test_convert_from_the_hub(run, hub, converted, tmp_path):
    code, _, err = run("convert", NAME, "-o", tmp_path / "out")
    assert code == 0, err
    assert content(tmp_path / "out") == converted
    source = tmp_path / "home" / "sources" / "Tiny-Mixtral"
    assert str(source) in err
    assert len(shards(source)) == 5
    hub.log.clear()
    assert run("convert", NAME, "-o", tmp_path / "again", "--bits", "8")[0] == 0
    assert not hub.asked()


def test_convert_with_little_room(run, hub, converted, tmp_path):
    """Every shard is fetched once, and nothing of the source remains."""
    code, _, err = run("convert", f"{NAME}@main", "-o", tmp_path / "out", "--delete-source")
    assert code == 0, err
    assert content(tmp_path / "out") == converted
    assert {file.name for file in tmp_path.iterdir()} <= {"out", "hf-home", "home"}
    assert not (tmp_path / "home").exists()
    for name in hub.repos[NAME].files:
        if name.endswith(".safetensors"):
            whole = [start for start, end in hub.fetched(name) if start == 0 and end is None]
            assert len(whole) <= 1
    origin = json.loads((tmp_path / "out" / "manifest.json").read_text())["source"]
    assert origin == f"{NAME}@{hub.repos[NAME].commit}"


@pytest.mark.parametrize("options", [[], ["--delete-source"]], ids=["keeping", "deleting"])
def test_killed_at_any_moment(start, hub, converted, tmp_path, options):
    for name in hub.repos[NAME].files:
        hub.faults[name] = Fault(times=-1, pause=0.004)
    rng = random.Random(len(options))
    kills = 0
    for _ in range(12):
        process = start("convert", NAME, "-o", tmp_path / "out", *options)
        try:
            _, err = process.communicate(timeout=rng.uniform(0.4, 1.6))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            if (tmp_path / "out").exists():
                break
            continue
        assert process.returncode == 0, err
        break
    else:
        hub.faults.clear()
        process = start("convert", NAME, "-o", tmp_path / "out", *options)
        assert process.wait(60) == 0
    assert kills
    assert content(tmp_path / "out") == converted
    fetched = sum(r.start == 0 for r in hub.log if r.method == "GET" and r.host == "cdn")
    assert fetched >= 5


def test_ctrl_c_while_fetching(start, run, hub, converted, tmp_path):
    for name in hub.repos[NAME].files:
        hub.faults[name] = Fault(times=-1, pause=0.05)
    process = start("convert", NAME, "-o", tmp_path / "out", "--delete-source")
    deadline = time.monotonic() + 20
    while not any(request.host == "cdn" for request in hub.log):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert time.monotonic() - begin < 3
    hub.faults.clear()
    assert run("convert", NAME, "-o", tmp_path / "out", "--delete-source")[0] == 0
    assert content(tmp_path / "out") == converted


def test_inspect_fetches_no_weights(run, hub):
    code, out, err = run("inspect", NAME, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["repository"] == f"{NAME}@{hub.repos[NAME].commit}"
    assert facts["licence"] == "apache-2.0"
    assert facts["shape"]["layers"] == 3
    assert facts["tokenizer"] == "v1, 32,000 tokens"
    assert all(
        end is not None and end < 100_000
        for name in hub.repos[NAME].files
        if name.endswith(".safetensors")
        for _, end in hub.fetched(name)
    )


def test_a_dry_run_fetches_no_weights(run, hub, tmp_path):
    code, out, err = run("convert", NAME, "-o", tmp_path / "out", "--dry-run")
    assert code == 0, err
    assert "would hold" in out
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pull", "someone/else"], 2, "someone/else"),
        (["pull", "no-such-thing"], 2, "nor one of 8x7b-instruct"),
        (["pull", NAME, "--file", "*.gguf"], 2, "no weights named"),
        (["pull", f"{NAME}@nowhere"], 2, "nowhere"),
    ],
)
def test_mistakes(run, arguments, code, message):
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


def test_bad_values_are_refused_before_anything_is_fetched(run, hub, tmp_path):
    assert run("convert", NAME, "-o", tmp_path / "out", "--bits", "7")[0] == 2
    assert not hub.log


def test_a_damaged_download(run, hub, tmp_path):
    name = "model-00003-of-00005.safetensors"
    good = hub.repos[NAME].files[name]
    hub.faults[name] = Fault(content=bytes(len(good)))
    code, _, err = run("pull", NAME)
    assert code == 1
    assert name in err.splitlines()[-1]
    assert not (tmp_path / "home" / "models" / "Tiny-Mixtral").exists()
    assert run("pull", NAME)[0] == 0
    assert run("verify", "Tiny-Mixtral")[0] == 0


def test_pull_of_what_is_here(run, tmp_path):
    code, _, err = run("pull", tmp_path)
    assert code == 2
    assert "is here already" in err
