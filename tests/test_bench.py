"""``mixtral-mlx bench``: what it reports, not how fast it was."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from checkpoints import tiny_config, write_hf

from mlx_mixtral.cli import main
from mlx_mixtral.lab import bench as lab
from mlx_mixtral.lab import shapes
from mlx_mixtral.lab.bench import Settings, Subject, bench
from mlx_mixtral.lab.roofline import Bandwidth
from mlx_mixtral.loading import LanguageModel, load_model

TINY = ["--prompt", "8", "--generate", "3", "--repeat", "2"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``bench`` in this process with a quick probe: (exit code, output, errors)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mixtral-mlx", "bench", *arguments])
        monkeypatch.setattr(lab.bench, "__defaults__", (lambda _: None, probe))
        with pytest.raises(SystemExit) as exit:
            main()
        return (int(exit.value.code or 0), *capsys.readouterr())

    return run


def probe() -> Bandwidth:
    return Bandwidth(2e9, 1e9, 1000)


def test_json_beside_mlx_lm(run: Run) -> None:
    code, out, err = run("demo", *TINY, "--against", "mlx-lm", "--against", "mlx-lm-f32", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["model"] == "demo"
    assert (record["experts"], record["experts_per_token"]) == (8, 2)
    assert (record["layers"], record["bits"]) == (4, 6)
    assert record["settings"]["prompt"] == 8
    assert record["load_s"] > 0
    for name in ("ttft_s", "prefill_tps", "decode_tps"):
        spread = record["ours"][name]
        assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    assert [o["name"].split()[0] for o in record["opponents"]] == ["mlx-lm", "mlx-lm"]
    assert "float32" in record["opponents"][1]["name"]
    for opponent in record["opponents"]:
        assert opponent["error"] is None
        assert opponent["prefill_ratio"] > 0
        assert opponent["decode_ratio"] > 0
    assert record["peak_array_bytes"] > 10**7
    assert record["peak_process_bytes"] > 10**7
    read = record["traffic"]
    assert read["total"] == sum(read[k] for k in ("shared", "experts", "embedding", "kv"))
    assert read["context"] == 9  # halfway: 8 in, 3 out
    assert record["ceiling_tps"] == pytest.approx(2e9 / read["total"])
    reached = record["ours"]["decode_tps"]["median"] / record["ceiling_tps"]
    assert record["reached"] == pytest.approx(reached)
    assert record["contexts"] == []
    assert 13.0 in [r["decode_tps"] for r in record["reported_by_others"]]
    assert all(r["source"] for r in record["reported_by_others"])


def test_the_report_for_a_person(run: Run) -> None:
    code, out, err = run("demo", *TINY)
    assert (code, err) == (0, "")
    for part in ("demo: 4 layers, 6 bit", "answer tok/s", "read a token", "no real ceiling"):
        assert part in out
    assert "Reported by others for Mixtral 8x7B, not measured here" in out
    assert "mlx-lm 4 bit" not in out
    assert "measured here: demo" in out


def test_a_shape_without_a_download(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tiny_config(num_hidden_layers=3, intermediate_size=128)
    monkeypatch.setitem(shapes.SHAPES, "8x7b", small)
    code, out, _ = run(
        *("--shape", "8x7b", "--bits", "3", "--group-size", "32", "--layers", "2", *TINY),
        *("--against", "mlx-lm-f32", "--against", "mlx-lm"),
    )
    assert code == 0
    assert "8x7b: 2 layers, 3 bit, 2 of 4 experts a token" in out
    assert "cut to 2 of 3 layers" in out
    assert "does not run this" not in out
    assert out.count("ours / ") == 2


def test_a_dense_shape_beside_mlx_lm(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "7b", tiny_config(num_local_experts=0))
    code, out, _ = run("--shape", "7b", "--bits", "16", *TINY, "--against", "mlx-lm-f32", "--json")
    record = json.loads(out)
    assert (code, record["bits"], record["experts_per_token"]) == (0, 16, 0)
    assert record["load_s"] is None
    assert record["opponents"][0]["decode_ratio"] > 0


def test_both_sides_say_the_same_on_shared_weights(tmp_path: Path) -> None:
    config = tiny_config()
    folder = write_hf(tmp_path, config)
    subject = Subject("tiny", config, load_model(folder, config), folder)
    prompt = lab.prompt_of(20, config)
    ours = [step.token for step in lab.our_tokens(subject)(prompt, 6)]
    for where in (folder, None):
        theirs = lab.mlx_lm("mlx-lm-f32", where, config, subject.model)
        assert [int(token) for token, _ in theirs(prompt, 6)] == ours


@pytest.mark.skipif(mx.default_device() == mx.Device(mx.gpu), reason="a CPU's limitation")
def test_an_opponent_that_cannot_run_is_told(tmp_path: Path) -> None:
    config = tiny_config()
    folder = write_hf(tmp_path, config, dtype="BF16")
    subject = Subject("tiny", config, load_model(folder, config), folder)
    settings = Settings(4, 2, 1, ("mlx-lm",))
    (opponent,) = bench(subject, settings, probe=probe).opponents
    assert opponent.speeds is None
    assert "float32" in str(opponent.error)


def test_speed_over_context(
    demo: LanguageModel, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("demo", demo.config, demo.model, demo.path)
    report = bench(subject, Settings(32, 2, 1, contexts=True), probe=probe)
    assert [point.context for point in report.contexts] == [5, 9, 17, 33]
    ceilings = [point.ceiling_tps for point in report.contexts]
    assert ceilings == sorted(ceilings, reverse=True)

    picture = tmp_path / "speed.png"
    if importlib.util.find_spec("matplotlib"):
        code, out, _ = run("demo", *TINY, "--plot", str(picture))
        assert (code, picture.read_bytes()[:4]) == (0, b"\x89PNG")
        assert str(picture) in out
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run("demo", *TINY, "--plot", str(picture))
    assert (code, out) == (2, "")
    assert "pip install" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such-model"], 1, "no model 'no-such-model'"),
        (["demo", "--repeat", "0"], 2, "--repeat"),
        (["demo", "--generate", "1"], 2, "--generate"),
        (["demo", "--prompt", "0"], 2, "--prompt"),
        (["demo", "--prompt", "2040"], 2, "context of 2048"),
        (["demo", "--against", "vllm"], 2, "mlx-lm or mlx-lm-f32"),
        (["demo", "--shape", "7b"], 2, "takes no model"),
        (["demo", "--bits", "4"], 2, "--bits belongs to --shape"),
        (["--shape", "8x9b"], 2, "8x7b, 8x22b, 7b"),
        (["--shape", "7b", "--bits", "0"], 2, "--bits 0"),
        (["--shape", "7b", "--layers", "40"], 2, "1 to 32"),
        (["--shape", "7b", "--prompt", "99999"], 2, "context of 32768"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    run: Run, arguments: list[str], code: int, message: str
) -> None:
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("name", ["nowhere/a.png", "a.txt"])
def test_a_picture_that_cannot_be_is_told_first(run: Run, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    code, out, err = run("demo", "--plot", str(tmp_path / name))
    assert (code, out) == (2, "")
    assert "--plot" in err


def test_more_than_the_machine_has(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "free_memory", lambda: 4 * 10**9)
    code, _, err = run("--shape", "8x22b")
    assert code == 2
    assert "4.0 GB can be used" in err
    assert err.count("\n") == 1
