"""``inspect``, ``verify`` and ``models`` as a person runs them, on what lies on the disk."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import quantization, random_weights, tiny_config, write_hf, write_mlx

from mlx_mixtral.catalog import models_home, sources_home
from mlx_mixtral.cli import main

TINY = tiny_config()


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a command in this process: (exit code, standard output, standard error)."""
    monkeypatch.setenv("MIXTRAL_MLX_HOME", str(tmp_path / "home"))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mixtral-mlx", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as exit:
            main()
        return (int(exit.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def made(run, tmp_path):
    """A converted model among the installed ones."""
    source = write_hf(tmp_path / "hf", TINY, dtype="BF16", shards=2)
    target = models_home() / "mine"
    assert run("convert", source, "-o", target, "--bits", "4", "--group-size", "32")[0] == 0
    return target


# --- inspect


def test_facts_of_a_checkpoint(run, tmp_path):
    source = write_hf(tmp_path / "hf", TINY, dtype="BF16", shards=2)
    code, out, err = run("inspect", source, "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    parameters = sum(w.size for w in random_weights(TINY).values())
    expert = 3 * TINY.hidden_size * TINY.intermediate_size * TINY.num_hidden_layers
    assert facts["parameters"] == parameters
    assert facts["active_parameters"] == parameters - 2 * expert  # two of four experts idle
    assert facts["weight_bytes"] == 2 * parameters
    assert facts["bits_per_weight"] == 16
    assert list(facts["weights"]) == ["bfloat16"]
    assert facts["shape"]["experts"] == 4
    assert sum(facts["files"].values()) > 2 * parameters
    assert facts["tokenizer"] is None


def test_facts_of_a_quantized_model(run, tmp_path):
    config = replace(TINY, quantization=quantization(4, 32, lm_head=8))
    code, out, _ = run("inspect", write_mlx(tmp_path / "mlx", config))
    assert code == 0
    assert "4 bits in groups of 32" in out
    line = next(line for line in out.splitlines() if "8 bits in groups of 32" in line)
    assert line.split()[:2] == ["1", "tensor,"]


def test_the_demo_for_a_person(run):
    code, out, _ = run("inspect", Path(__file__).parent.parent / "mlx_mixtral" / "demo")
    facts = {line[:20].strip(): line[20:] for line in out.splitlines() if line[:1].strip()}
    assert code == 0
    assert facts["parameters"] == "15,476,992"
    assert facts["tokenizer"] == "v1, 4,096 tokens"


def test_odd_things_are_noted(run, tmp_path):
    config = replace(TINY, num_experts_per_tok=3, rope_theta=5e5)
    notes = json.loads(run("inspect", write_hf(tmp_path / "hf", config), "--json")[1])["notes"]
    assert any("3 experts answer a token" in note for note in notes)
    assert any("rope_theta is 500000" in note for note in notes)


def test_what_is_missing_is_counted(run, tmp_path):
    source = write_hf(tmp_path / "hf", TINY, dtype="BF16", shards=3)
    (source / "model.safetensors.index.json").unlink()
    (source / "model-00002-of-00003.safetensors").unlink()
    code, _, err = run("inspect", source)
    assert code == 1
    assert "missing" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("nowhere", 2, "neither a folder or file here"),
        ("no/where/at all", 2, "neither a folder or file here"),
        ("", 2, "neither a folder"),
    ],
)
def test_names_that_mean_nothing(run, name, code, message):
    found, _, err = run("inspect", name)
    assert found == code
    assert message in err


def test_folders_without_weights(run, tmp_path):
    code, _, err = run("inspect", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "no weights" in err
    (tmp_path / "pytorch_model-00001-of-00019.bin").touch()
    assert "can hold code" in run("inspect", tmp_path)[2]


# --- verify


def test_a_model_that_is_whole(run, made):
    code, out, _ = run("verify", "mine")
    assert code == 0
    assert "3 files" in out


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit(run, made, name):
    data = bytearray((made / name).read_bytes())
    data[-3] ^= 1
    (made / name).write_bytes(data)
    code, out, err = run("verify", made)
    assert code == 1
    assert out == f"{name} has changed: its sha256 is another\n"
    assert "1 of 3 files" in err


def test_a_file_that_is_short_or_gone(run, made):
    with (made / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    (made / "config.json").unlink()
    code, out, _ = run("verify", made)
    assert code == 1
    assert "config.json is missing" in out
    assert "model.safetensors has 1,000 bytes instead of" in out


@pytest.mark.parametrize(
    "files",
    [{"../secret": {"size": 1, "sha256": ""}}, {"/etc/passwd": {"size": 1, "sha256": ""}}, 5],
)
def test_a_manifest_that_points_elsewhere(run, made, files):
    (made / "manifest.json").write_text(json.dumps({"files": files}))
    code, _, err = run("verify", made)
    assert code == 1
    assert "damaged" in err


def test_without_a_manifest(run, tmp_path):
    code, _, err = run("verify", write_hf(tmp_path / "hf", TINY))
    assert code == 1
    assert "no manifest.json" in err


# --- models


def test_the_list(run, made):
    (sources_home() / "magnet").mkdir(parents=True)
    (models_home() / ".other.partial" / "files").mkdir(parents=True)
    (models_home() / ".other.partial" / "files" / "x").write_bytes(bytes(5000))
    rows = {row["name"]: row for row in json.loads(run("models", "--json")[1])}
    assert rows.keys() == {"demo", "mine", "magnet", ".other.partial"}
    assert rows["mine"]["bytes"] >= sum(f.stat().st_size for f in made.iterdir()) * 0.99
    assert rows["mine"]["about"] == "from hf"
    assert "unfinished" in rows[".other.partial"]["about"]
    assert "to be converted" in rows["magnet"]["about"]
    assert "mine" in run("models")[1]


def test_one_is_shown(run, made):
    facts = json.loads(run("models", "show", "mine", "--json")[1])
    assert facts["folder"] == str(made)
    assert facts["source"] == "hf"
    assert "4 bits in groups of 32" in facts["weights"]


def test_one_is_removed(run, made):
    code, _, err = run("models", "remove", "mine")
    assert (code, made.exists()) == (2, True)
    assert "--yes" in err
    code, out, _ = run("models", "remove", "mine", "--yes")
    assert (code, made.exists()) == (0, False)
    assert str(made) in out
    assert not list(made.parent.iterdir())


@pytest.mark.parametrize("name", ["demo", "nothing", "../mine", "/"])
def test_only_what_is_listed_can_be_removed(run, made, name):
    code, _, err = run("models", "remove", name, "--yes")
    assert code == 2
    assert "not installed" in err
    assert made.exists()


def test_published_names_have_licences_and_sizes(run):
    out = run("models", "--published")[1]
    line = next(line for line in out.splitlines() if line.startswith("8x7b-instruct"))
    assert "93.4 GB" in line
    assert "Apache-2.0" in line
