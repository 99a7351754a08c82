"""``mixtral-mlx bench``: what it reports, not how fast it was."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import tiny_config, write_hf

from mlx_mixtral.catalog import resolve
from mlx_mixtral.cli import main
from mlx_mixtral.cli.bench_report import lines_of
from mlx_mixtral.config import ModelConfig
from mlx_mixtral.errors import MixtralError
from mlx_mixtral.generation.prompt_cache import make_caches
from mlx_mixtral.lab import bench as lab
from mlx_mixtral.lab import runs, shapes
from mlx_mixtral.lab.bench import bench
from mlx_mixtral.lab.contexts import filled, over_contexts, usual_contexts
from mlx_mixtral.lab.fresh import fresh
from mlx_mixtral.lab.loads import compare_loads
from mlx_mixtral.lab.machine import peak_process_bytes
from mlx_mixtral.lab.opponents import mlx_lm
from mlx_mixtral.lab.report import Settings
from mlx_mixtral.lab.roofline import Bandwidth
from mlx_mixtral.lab.runs import Side, Spread, our_side, prompt_of
from mlx_mixtral.lab.subject import Subject
from mlx_mixtral.lab.turns import hold_turns, script_of
from mlx_mixtral.loading import LanguageModel, load, load_model

TINY = ["--prompt", "8", "--generate", "3", "--repeat", "2"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``bench`` in this process with a quick probe: (exit code, output, errors)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mixtral-mlx", "bench", *arguments])
        monkeypatch.setattr(lab.bench, "__defaults__", (lambda _: None, (), probe))
        with pytest.raises(SystemExit) as exit:
            main()
        return (int(exit.value.code or 0), *capsys.readouterr())

    return run


def probe() -> Bandwidth:
    return Bandwidth(2e9, 1e9, 1000)


def test_json_beside_mlx_lm(run: Run) -> None:
    both = ("--against", "mlx-lm", "--against", "mlx-lm-f32")
    code, out, err = run("demo", *TINY, "--repeat", "1", *both, "--json")
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
    assert [o["name"] for o in record["opponents"]] == ["mlx-lm", "mlx-lm-f32"]
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
    assert [side["name"] for side in record["loads"]] == ["mlx-mixtral", "mlx-lm", "mlx-lm-f32"]
    assert record["loads"][0]["ratio"] is None
    assert all(side["ratio"] > 0 for side in record["loads"][1:])
    assert (record["contexts"], record["turns"]) == (None, [])
    assert (record["tuning"], record["tuning_note"]) == ({}, None)
    assert 13.0 in [r["decode_tps"] for r in record["reported_by_others"]]
    assert all(r["source"] for r in record["reported_by_others"])


def test_the_report_for_a_person(run: Run) -> None:
    code, out, err = run("demo", *TINY)
    assert (code, err) == (0, "")
    for part in ("demo: 4 layers, 6 bit", "answer tok/s", "read a token", "no real ceiling"):
        assert part in out
    assert "Reported by others for Mixtral 8x7B, not measured here" in out
    assert "mlx-lm 4 bit" not in out
    assert "tuned" not in out
    assert "measured here: demo" in out


@pytest.mark.usefixtures("kept_packed")
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
    model = load_model(folder, config)
    prompt = prompt_of(20, config)
    ours = [step.token for step in our_side(model, config).tokens(prompt, 6, None)]
    for where in (folder, None):
        theirs = mlx_lm("mlx-lm-f32", where, config, model)
        assert [int(token) for token, _ in theirs.tokens(prompt, 6, None)] == ours


def test_both_sides_continue_what_their_caches_hold(tmp_path: Path) -> None:
    config = tiny_config()
    folder = write_hf(tmp_path, config)
    model = load_model(folder, config)
    prompt = prompt_of(20, config)
    sides = [our_side(model, config), mlx_lm("mlx-lm-f32", folder, config, model)]
    whole = [token_of(step) for step in sides[0].tokens(prompt, 6, None)]
    for side in sides:
        caches = side.caches()
        first = [token_of(step) for step in side.tokens(prompt, 3, caches)]
        assert first == whole[:3]
        for cache in caches:  # a side may be a step ahead of what it told
            cache.trim(cache.offset - len(prompt) - 2)
        assert [token_of(s) for s in side.tokens(first[-1:], 3, caches)] == whole[3:]
        assert caches[0].offset >= len(prompt) + 5


def token_of(step: Any) -> int:
    return int(step[0])


def test_contexts_are_the_same_for_all_sides(tmp_path: Path) -> None:
    config = tiny_config()
    folder = write_hf(tmp_path, config)
    model = load_model(folder, config)
    ours, theirs = our_side(model, config), mlx_lm("mlx-lm-f32", folder, config, model)
    told = []
    for side in (ours, theirs):
        caches = filled(side, config, 33)
        assert {cache.offset for cache in caches} == {33}
        first, second = ((c.parts[0] if side is ours else c.keys)[:, :, :33] for c in caches[:2])
        assert first.std() > 0.3
        assert not mx.array_equal(first, second)
        told.append([token_of(step) for step in side.tokens([5], 6, caches)])
    assert told[0] == told[1]
    other = [token_of(step) for step in ours.tokens([5], 6, None)]
    assert other != told[0]  # they were looked at


class Clock:
    """Time that passes as it is told."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def slow_side(clock: Clock, config: ModelConfig, base: float, per_token: float) -> Side:
    """A program whose tokens take ``base`` seconds and ``per_token`` for each before."""

    def tokens(prompt: list[int], count: int, caches: list[Any] | None) -> Iterator[int]:
        assert caches is not None
        for _ in range(count):
            clock.now += base + per_token * caches[0].offset
            yield 0

    return Side(tokens, lambda: make_caches(config), mx.float32)


def test_the_slope_over_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    config, clock = tiny_config(), Clock()
    monkeypatch.setattr(runs, "time", clock)
    sides = {
        "a": slow_side(clock, config, 0.002, 0.0001),
        "b": slow_side(clock, config, 0.004, 0.0),
    }
    found = over_contexts(sides, config, (10, 50, 90), 3, 2, lambda _: None)
    assert [point.context for point in found.points] == [10, 50, 90]
    assert found.slopes["a"].median == pytest.approx(100)  # ms for 1,000 tokens
    assert found.slopes["b"].median == pytest.approx(0, abs=1e-6)
    point = found.points[2]
    assert point.decode_ms["a"].median == pytest.approx(11)
    assert point.decode_tps["a"].median == pytest.approx(1000 / 11)
    one = over_contexts(sides, config, (10,), 2, 1, lambda _: None)
    assert one.slopes["a"] == Spread(0.0, 0.0, 0.0)


def test_which_contexts_where_none_are_named() -> None:
    assert usual_contexts(32000) == (100, 1000, 2000, 4000, 8000)
    assert usual_contexts(2048) == (100, 1000, 2000)
    assert usual_contexts(500) == (62, 500)


def test_turns_pay_for_what_is_new(demo: LanguageModel) -> None:
    ours = our_side(demo.model, demo.config)
    theirs = mlx_lm("mlx-lm-f32", demo.path, demo.config, demo.model)
    sides = {"mlx-mixtral": ours, "theirs": theirs}
    found = hold_turns(demo, sides, script_of(demo, 4, 40), 1, lambda _: None)
    new = [turn.new for turn in found]
    assert all(40 <= n < 80 for n in new)
    assert max(new) - min(new) <= 2
    grown = [b.context - a.context for a, b in pairwise(found)]
    assert all(n > m for n, m in zip(grown, new, strict=False))  # answers are known already
    assert all(set(turn.ttft_s) == set(sides) for turn in found)
    assert all(turn.whole_s > 0 and min(turn.ttft_s.values()) > 0 for turn in found)


def test_loads_are_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    held = mx.zeros((3 << 26,))  # a parent of 800 MB
    mx.eval(held)
    folder = Path(demo_folder())
    ours, theirs = compare_loads(folder, ("mlx-lm",), 1, lambda _: None)
    assert (ours.name, theirs.name, ours.ratio) == ("mlx-mixtral", "mlx-lm", None)
    assert theirs.ratio is not None
    assert theirs.ratio > 0
    for side in (ours, theirs):
        assert side.seconds
        assert 0 < side.seconds.low <= side.seconds.high
        most = side.first
        assert most
        assert 10**7 < most.array_bytes <= most.run_array_bytes
        assert most.array_bytes < most.process_bytes <= most.run_process_bytes < held.nbytes
    assert peak_process_bytes() > held.nbytes


def test_an_opponent_that_cannot_load_is_told(tmp_path: Path) -> None:
    config = tiny_config()
    folder = write_hf(tmp_path, config)
    changed = json.loads((folder / "config.json").read_text()) | {"model_file": "code.py"}
    (folder / "config.json").write_text(json.dumps(changed))
    ours, theirs = compare_loads(folder, ("mlx-lm",), 1, lambda _: None)
    assert ours.error is None
    assert "code.py" in str(theirs.error)
    assert (theirs.seconds, theirs.ratio, theirs.first) == (None, None, None)


def demo_folder() -> Path:
    return resolve("demo")


def test_a_process_of_its_own() -> None:
    here = {"PYTHONPATH": os.pathsep.join(sys.path), "SOME_SETTING": "7"}
    assert fresh(echo, {"value": [1, "a"]}, here) == [[1, "a"], "7"]
    with pytest.raises(MixtralError, match="ValueError: no such luck"):
        fresh(fail, {}, here)


def echo(value: object) -> list[object]:
    print("noise of a library")
    return [value, os.environ["SOME_SETTING"]]


def fail() -> None:
    raise ValueError("no such luck")


@pytest.mark.skipif(mx.default_device() == mx.Device(mx.gpu), reason="a CPU's limitation")
def test_an_opponent_that_cannot_run_is_told(tmp_path: Path) -> None:
    config = tiny_config()
    folder = write_hf(tmp_path, config, dtype="BF16")
    (folder / "tokenizer.model").write_bytes((demo_folder() / "tokenizer.model").read_bytes())
    lm = load(folder)
    subject = Subject("tiny", config, lm.model, lm)
    settings = Settings(4, 2, 1, ("mlx-lm",))
    (opponent,) = bench(subject, settings, probe=probe).opponents
    assert opponent.speeds is None
    assert "float32" in str(opponent.error)


def test_speed_over_context(
    demo: LanguageModel, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("demo", demo.config, demo.model, demo)
    settings = Settings(32, 2, 1, contexts=(90, 9, 9), turns=2)
    report = bench(subject, settings.ready_for(demo.config), probe=probe)
    assert report.contexts
    assert [point.context for point in report.contexts.points] == [9, 90]
    assert report.ceilings == sorted(report.ceilings, reverse=True)
    kv = report.traffic.kv / report.traffic.context
    read = [2e9 / ceiling for ceiling in report.ceilings]
    assert read[1] - read[0] == pytest.approx(81 * kv, rel=0.01)
    assert len(report.turns) == 2
    told = "\n".join(lines_of(report))
    for part in ("answer after", "90 tokens", "each 1,000 more", "all anew"):
        assert part in told
    assert max(map(len, told.splitlines())) <= 80

    picture = tmp_path / "speed.png"
    if importlib.util.find_spec("matplotlib"):
        code, out, _ = run("demo", *TINY, "--contexts", "8,16", "--plot", str(picture))
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
        (["demo", "--contexts", "10,2040"], 2, "lower --contexts"),
        (["demo", "--contexts", "0"], 2, "--contexts"),
        (["demo", "--contexts", "1;2"], 2, "100,8000"),
        (["demo", "--turns", "-1"], 2, "--turns"),
        (["demo", "--turns", "20"], 2, "lower --turns"),
        (["--shape", "7b", "--turns", "2"], 2, "--turns"),
        (["--shape", "7b", "--tune"], 2, "--tune takes a model"),
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
