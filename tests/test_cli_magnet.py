"""From a magnet link to a model, with a real libtorrent session that gives it."""

import importlib.resources
import json
import os
import signal
import time
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from checkpoints import encode, random_weights, tiny_config, write_hf
from formats_native import native, write_params, write_pth

from convert.pipeline import convert
from convert.plan import plan
from convert.readers.detect import open_source
from convert.recipe import uniform

pytest.importorskip("libtorrent", reason="Python 3.14 has no libtorrent yet")

from torrents import Seeder, make_torrent

TOKENIZER = importlib.resources.files("mistral_common") / "data" / "tokenizer.model.v1"
CONFIG = tiny_config(
    vocab_size=32000, num_hidden_layers=3, max_position_embeddings=32768, num_local_experts=8
)
PRIVATE = ("--listen", "127.0.0.1:0", "--no-discovery")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The folder as Mistral gave it, and its torrent."""
    folder = write_params(tmp_path_factory.mktemp("swarm") / "mixtral-tiny", CONFIG)
    raw = {n: encode(w, "BF16") for n, w in native(random_weights(CONFIG), CONFIG).items()}
    write_pth(folder / "consolidated.00.pth", raw)
    (folder / "tokenizer.model").write_bytes(TOKENIZER.read_bytes())
    (folder / "RELEASE").write_text("as it was")
    return folder, make_torrent(folder)


@pytest.fixture
def seeder(released):
    folder, torrent = released
    with Seeder(torrent, folder.parent) as seeder:
        yield seeder


@pytest.fixture
def start(spawn, tmp_path):
    return partial(spawn, env=os.environ | {"MIXTRAL_MLX_HOME": str(tmp_path / "home")})


@pytest.fixture
def run(start):
    def run(*arguments: object) -> tuple[int, str, str]:
        process = start(*arguments)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return process.returncode, out, err

    return run


def content(folder: Path) -> dict[str, str]:
    """What tells each file from others; bytes would keep a failing test busy for minutes."""
    files = [file for file in folder.iterdir() if file.name != "manifest.json"]
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in files}


def test_pull_by_magnet(run, released, seeder, tmp_path):
    code, out, err = run("pull", seeder.link, *PRIVATE)
    assert code == 0, err
    folder = tmp_path / "home" / "models" / "model"
    assert content(folder) == content(released[0])
    assert "convert it: mixtral-mlx convert" in out
    assert run("verify", "model")[0] == 0
    given = seeder.given
    assert run("pull", seeder.link, *PRIVATE)[0] == 0  # there already
    assert seeder.given == given


@pytest.mark.parametrize("by", ["link", "file"])
def test_convert_what_a_swarm_has(run, released, seeder, tmp_path, by):
    source, more = seeder.link, []
    if by == "file":
        source = tmp_path / "released.torrent"
        source.write_bytes(released[1])
        more = ["--peer", seeder.peer]
    code, _, err = run("convert", source, "-o", tmp_path / "out", *PRIVATE, *more)
    assert code == 0, err
    hf = write_hf(tmp_path / "hf", CONFIG, dtype="BF16")
    (hf / "tokenizer.model").write_bytes(TOKENIZER.read_bytes())
    convert(plan(open_source(hf), uniform(4), "better"), tmp_path / "wanted")
    assert content(tmp_path / "out") == content(tmp_path / "wanted")
    origin = json.loads((tmp_path / "out" / "manifest.json").read_text())["source"]
    assert origin == f"magnet:?xt=urn:{seeder.hash}"


def test_the_source_can_go_when_all_is_done(run, seeder, tmp_path):
    options = (*PRIVATE, "--delete-source")
    code, _, err = run("convert", seeder.link, "-o", tmp_path / "out", *options)
    assert code == 0, err
    left = {file.name for file in (tmp_path / "home" / "sources" / "model").iterdir()}
    assert "consolidated.00.pth" not in left
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_seeding_is_asked_for_and_ends_with_ctrl_c(start, seeder, tmp_path):
    process = start("pull", seeder.link, *PRIVATE, "--seed")
    assert process.stdout is not None
    line = process.stdout.readline()  # nothing is given before all is here
    assert "convert it" in line
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert (tmp_path / "home" / "models" / "model" / "params.json").exists()


def test_inspect_lists_what_a_torrent_holds(run, released, tmp_path):
    file = tmp_path / "released.torrent"
    file.write_bytes(released[1])
    code, out, err = run("inspect", file, "--json")
    assert code == 0, err
    files = json.loads(out)["files"]
    assert files["consolidated.00.pth"] == (released[0] / "consolidated.00.pth").stat().st_size


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("magnet:?dn=nothing", "magnet"),
        ("magnet:?xt=urn:btih:zzz", "magnet"),
        ("?xt=urn:btih:12", "magnet"),
    ],
)
def test_links_that_are_none(run, tmp_path, source, message):
    for command in (["pull", source], ["convert", source, "-o", tmp_path / "out"]):
        code, out, err = run(*command)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "home").exists()
