"""Fitting a size: never more, hardly less, and as good as trying everything."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import random_ids, relative_difference, tiny_config, write_hf
from hypothesis import given
from hypothesis import strategies as st

from convert.fit import SPECS, STEPS, Choice, Fitted, choose, fit, parse_size, smallest, summary
from convert.pipeline import convert
from convert.plan import plan
from convert.readers.safetensors import read_folder
from convert.sensitivity import WEIGHTS, Unit, _sample, losses, units
from mlx_mixtral.config import QuantSpec, read_config
from mlx_mixtral.errors import UsageError
from mlx_mixtral.lab.shapes import SHAPES
from mlx_mixtral.loading import load_model
from mlx_mixtral.network import arrays
from mlx_mixtral.weights import expected_shapes

TINY = tiny_config(
    vocab_size=320, hidden_size=256, intermediate_size=384, head_dim=64, num_hidden_layers=4
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hf(tmp_path_factory.mktemp("hf"), TINY, dtype="BF16")


@pytest.fixture(scope="module")
def source(folder):
    return read_folder(folder)


# --- choosing


amounts = st.integers(0, 60)
OPTIONS = st.lists(
    st.lists(st.tuples(amounts, amounts), min_size=1, max_size=4), min_size=1, max_size=5
)


@given(OPTIONS, st.integers(0, 200))
def test_choosing_is_as_good_as_trying_everything(raw, spare):
    options = [[Choice(None, n, float(loss)) for n, loss in choices] for choices in raw]
    budget = sum(min(c.nbytes for c in choices) for choices in options) + spare
    chosen = choose(options, budget)
    assert all(c in choices for c, choices in zip(chosen, options, strict=True))
    assert sum(c.nbytes for c in chosen) <= budget
    fitting = [
        sum(c.loss for c in combination)
        for combination in itertools.product(*options)
        if sum(c.nbytes for c in combination) <= budget
    ]
    assert sum(c.loss for c in chosen) == min(fitting)


@given(OPTIONS, st.integers(0, 200), st.integers(1, 9))
def test_never_more_however_coarse_the_steps(raw, spare, steps):
    options = [[Choice(None, n, float(loss)) for n, loss in choices] for choices in raw]
    budget = sum(min(c.nbytes for c in choices) for choices in options) + spare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convert.fit.STEPS", steps)
        chosen = choose(options, budget)
    assert sum(c.nbytes for c in chosen) <= budget


def test_amounts_larger_than_the_steps_are_rounded_up():
    """Nearly exact: what rounding costs is a step for each."""
    rng = np.random.default_rng(0)
    options = [
        [Choice(None, int(n), 1 / n) for n in rng.integers(10**8, 10**9, 5)] for _ in range(6)
    ]
    least = sum(min(c.nbytes for c in choices) for choices in options)
    for spare in (0, 10**8, 10**9, 2 * 10**9):
        chosen = choose(options, least + spare)
        assert sum(c.nbytes for c in chosen) <= least + spare
        exact = min(
            sum(c.loss for c in combination)
            for combination in itertools.product(*options)
            if sum(c.nbytes for c in combination) <= least + spare - 6 * (spare // STEPS + 1)
            or (spare == 0 and sum(c.nbytes for c in combination) == least)
        )
        assert sum(c.loss for c in chosen) <= exact


# --- what a matrix would lose


def test_every_matrix_but_the_router_is_in_one_unit():
    for config in (SHAPES["8x7b"], SHAPES["7b"], replace(TINY, tie_word_embeddings=True)):
        names = [name for unit in units(config) for name in unit.names]
        matrices = [
            f"{path}.weight"
            for path, shape in expected_shapes(config).items()
            if len(shape) > 1 and not path.endswith("block_sparse_moe.gate")
        ]
        assert sorted(names) == sorted(matrices)
        assert {unit.kind for unit in units(config)} <= WEIGHTS.keys()
    layers = {unit.layer for unit in units(SHAPES["8x7b"])}
    assert layers == {None, *range(32)}


def test_losses_are_the_errors_of_what_would_be_written(folder, source):
    """The sample against the whole of it, quantized by MLX and measured in NumPy."""
    unit = next(u for u in units(TINY) if u.kind == "down")
    weight = np.concatenate(
        [np.array(p.read().astype(mx.float32)) for p in source.tensors[unit.names[0]].parts]
    )
    for spec in (QuantSpec(4, 64), QuantSpec(2, 128), QuantSpec(8, 32)):
        packed = mx.quantize(mx.array(weight).astype(mx.bfloat16), spec.group_size, spec.bits)
        wide = [packed[0], *(array.astype(mx.float32) for array in packed[1:])]
        rough = np.array(mx.dequantize(*wide, spec.group_size, spec.bits))
        error = np.square(weight - rough).sum() / np.square(weight).sum()
        found = losses(source, unit, [spec], "fast")[spec]
        assert found == pytest.approx(error * WEIGHTS["down"] / 4, rel=0.15)


def test_the_sample_is_spread_over_experts_and_rows(source):
    down = source.tensors[next(u for u in units(TINY) if u.kind == "down").names[0]]
    experts = [np.array(part.read().astype(mx.float32)) for part in down.parts]
    sample = np.array(_sample(down).astype(mx.float32))
    assert np.array_equal(sample, np.concatenate([experts[0][::8], experts[2][::8]]))


def test_losses_order_the_forms(source):
    unit = units(TINY)[1]
    fast, better = (losses(source, unit, SPECS, effort) for effort in ("fast", "better"))
    for group in (32, 64, 128):
        by_bits = [fast[QuantSpec(bits, group)] for bits in (8, 6, 5, 4, 3, 2)]
        assert by_bits == sorted(by_bits)
    assert fast[QuantSpec(4, 32)] < fast[QuantSpec(4, 64)] < fast[QuantSpec(4, 128)]
    assert better[QuantSpec(3, 64)] < 0.9 * fast[QuantSpec(3, 64)]


def test_groups_that_do_not_divide_are_no_choice(tmp_path):
    source = read_folder(write_hf(tmp_path, replace(TINY, intermediate_size=96)))
    down = next(u for u in units(source.config) if u.kind == "down")
    assert {spec.group_size for spec in losses(source, down, SPECS, "fast")} == {32}
    assert fit(source, smallest(source)).nbytes == smallest(source)


# --- fitting


def written(source, tmp_path: Path, budget: int) -> int:
    """Bytes of the files."""
    recipe = fit(source, budget).recipe
    convert(plan(source, recipe), tmp_path)
    return sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0])
def test_within_two_percent_and_never_more(source, tmp_path, share):
    least = smallest(source)
    whole = fit(source, 10**12).nbytes
    budget = int(least + share * (whole - least))
    nbytes = written(source, tmp_path / "out", budget)
    assert 0.98 * budget - 30_000 <= nbytes <= budget  # the room for headers is generous
    fitted = fit(source, budget)
    assert 0.98 * budget <= fitted.nbytes <= budget


def test_the_smallest_is_said(source):
    least = smallest(source)
    with pytest.raises(
        UsageError, match=r"cannot be met; the smallest that can is ([\d.]+MB)"
    ) as e:
        fit(source, least - 1)
    said = str(e.value).split("can is ")[1].split()[0]
    assert least <= parse_size(said) <= least + 10_000
    assert fit(source, parse_size(said)).nbytes <= parse_size(said)
    forms = {form for _, form in fit(source, least).forms}
    assert forms == {QuantSpec(2, 128)}


def test_what_rounding_leaves_is_spent():
    """Three of 10 bytes each and 30 to spend: in steps of 7 only one would fit."""
    options = [[Choice(None, 0, 1.0), Choice(None, 10, 0.0)] for _ in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convert.fit.STEPS", 5)
        for budget, taken in ((30, 3), (29, 2), (10, 1), (9, 0)):
            chosen = choose(options, budget)
            assert sum(c.nbytes for c in chosen) == 10 * taken


def test_all_of_it_fits(source):
    fitted = fit(source, 10**12)
    assert fitted.recipe is None
    assert {form for _, form in fitted.forms} == {None}


def test_what_is_multiplied_together_stays_together(source, tmp_path, kept_packed):
    fitted = fit(source, smallest(source) + 600_000)
    convert(plan(source, fitted.recipe), tmp_path / "out")
    config = read_config(tmp_path / "out")
    model = load_model(tmp_path / "out", config, mx.float32)
    joined = [n for n in arrays(model) if "qkv_proj" in n or "gate_up_proj" in n]
    assert not [name for name in joined if ".maps." in name]
    assert len(set(config.quantization.overrides.values())) > 1
    from mlx_lm.utils import load_model as load_mlx_lm

    theirs, _ = load_mlx_lm(tmp_path / "out")
    theirs.set_dtype(mx.float32)
    ids = random_ids(config)
    assert relative_difference(model(ids), theirs(ids)) <= 1e-5


def test_what_weighs_more_gets_more(source, monkeypatch):
    for heavy in ("qkv", "down", "lm_head"):
        monkeypatch.setattr(
            "convert.sensitivity.WEIGHTS",
            {kind: 1000.0 if kind == heavy else 1.0 for kind in WEIGHTS},
        )
        fitted = fit(source, 2 * smallest(source))
        bits = {}
        for unit, form in fitted.forms:
            bits.setdefault(unit.kind == heavy, []).append(form.bits if form else 16)
        assert min(bits[True]) > np.mean(bits[False])


def test_the_same_again(source):
    budget = 2 * smallest(source)
    assert fit(source, budget, "better") == fit(source, budget, "better")


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("20GB", 20 * 10**9), ("21.5 gb", 215 * 10**8), ("900MB", 9 * 10**8), ("1GiB", 1 << 30)],
)
def test_sizes(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["20", "GB", "-3GB", "20 TB", "1e3GB", ""])
def test_no_sizes(text):
    with pytest.raises(UsageError, match="is not a size such as 20GB"):
        parse_size(text)


def test_the_summary():
    def unit(kind, layer):
        return Unit(kind, layer, ())

    four, three = QuantSpec(4, 64), QuantSpec(3, 128)
    forms = [(unit("embed_tokens", None), None)]
    forms += [(unit("gate_up", n), four if n in (0, 1, 5) else three) for n in range(8)]
    fitted = Fitted(None, tuple(forms), 1, 1)
    assert summary(fitted) == [
        "embedding  16 bits",
        "gate, up   4 bits/64 in 0-1, 5; 3 bits/128 in 2-4, 6-7",
    ]


# --- as a person runs it


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlx_mixtral", "convert", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "80"}
    )


def test_convert_fits(folder, tmp_path):
    done = run(folder, "-o", tmp_path / "out", "--fit", "2.5MB", "--effort", "fast")
    assert done.returncode == 0
    size = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert 2_400_000 <= size <= 2_500_000
    assert "q, k, v    " in done.stderr
    again = run(folder, "-o", tmp_path / "again", "--fit", "2.5MB", "--dry-run")
    assert again.returncode == 0
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fit", "20"], "--fit '20' is not a size such as 20GB"),
        (["--fit", "1KB"], "cannot be met; the smallest that can is "),
        (["--fit", "3MB", "--bits", "4"], "leave out the others"),
        (["--fit", "3MB", "--recipe", "4bit"], "leave out the others"),
        (["--fit", "3MB", "--delete-source"], "pull the source first"),
    ],
)
def test_refused_in_one_line(folder, tmp_path, options, message):
    done = run(folder, "-o", tmp_path / "out", *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
