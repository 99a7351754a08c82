"""``better``: less lost than by mx.quantize, in every group, and near the best there is."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import random_ids, random_weights, tiny_config, write_hf
from hypothesis import given
from hypothesis import strategies as st

from convert import quantize as quantizing
from convert.affine import fit, stored
from convert.pipeline import convert
from convert.plan import plan
from convert.quantize import dequantize, quantize
from convert.readers.safetensors import read_folder
from convert.recipe import uniform
from mlx_mixtral.config import QuantSpec, read_config
from mlx_mixtral.errors import ModelError
from mlx_mixtral.loading import load_model
from mlx_mixtral.weights import open_weights

BITS = (2, 3, 4, 5, 6, 8)
DEMO = Path(__file__).parent.parent / "mlx_mixtral" / "demo"


def gaussian(rows: int, columns: int, seed: int = 0, outliers: float = 0.01) -> mx.array:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, columns))
    values *= 0.02 * np.where(rng.random(values.shape) < outliers, 5, 1)
    return mx.array(values.astype(np.float32)).astype(mx.bfloat16)


def errors(weight: mx.array, spec: QuantSpec, effort: str) -> np.ndarray:
    """The squared error of each group, in float64."""
    made = dequantize(quantize(weight, weight.dtype, spec, effort), spec)
    difference = np.array(made, np.float64) - np.array(weight.astype(mx.float32), np.float64)
    return (difference**2).reshape(-1, spec.group_size).sum(axis=1)


def ratio(weight: mx.array, spec: QuantSpec) -> float:
    """The relative RMS error, better to fast."""
    better, fast = (errors(weight, spec, effort).sum() for effort in ("better", "fast"))
    return float(np.sqrt(better / fast))


# --- how good it is


@pytest.mark.parametrize(
    ("bits", "most"), [(8, 0.85), (6, 0.93), (5, 0.93), (4, 0.9), (3, 0.86), (2, 0.82)]
)
def test_a_gaussian_with_outliers(bits, most):
    assert ratio(gaussian(256, 1024), QuantSpec(bits, 64)) < most


@pytest.fixture(scope="module")
def demo_weights():
    """Matrices of the demo model, which comes in 6 bits."""
    config = read_config(DEMO)
    tensors, spec = open_weights(DEMO, config), config.quantization.default

    def matrix(path: str) -> mx.array:
        arrays = (tensors[f"{path}.{kind}"].read() for kind in ("weight", "scales", "biases"))
        return dequantize(tuple(arrays), spec).astype(mx.bfloat16)

    layer = "model.layers.2."
    return {
        "attention": matrix(f"{layer}self_attn.v_proj"),
        "gate": matrix(f"{layer}block_sparse_moe.switch_mlp.gate_proj")[3],
        "down": matrix(f"{layer}block_sparse_moe.switch_mlp.down_proj")[5],
        "head": matrix("lm_head"),
    }


@pytest.mark.parametrize(("bits", "most"), [(8, 0.8), (4, 0.9), (3, 0.865), (2, 0.825)])
def test_a_real_models_matrices(demo_weights, bits, most):
    for path, weight in demo_weights.items():
        assert ratio(weight, QuantSpec(bits, 64)) < most, path


def brute_force(group: np.ndarray, bits: int) -> float:
    """The least squared error of any scale and bias, stored or not: a fine grid, then descent."""
    levels = 2**bits - 1
    low, high = group.min(), group.max()
    width = high - low
    steps = np.linspace(-0.05, 0.5, 90)
    lows, highs = (ends.ravel() for ends in np.meshgrid(low + steps * width, high - steps * width))
    wide = highs - lows > 0.1 * width
    scales, biases = ((highs - lows) / levels)[wide], lows[wide]
    for _ in range(10):
        codes = np.clip(np.rint((group - biases[:, None]) / scales[:, None]), 0, levels)
        centered = codes - codes.mean(axis=1, keepdims=True)
        scales = (centered @ group) / np.maximum((centered**2).sum(axis=1), 1e-12)
        biases = group.mean() - scales * codes.mean(axis=1)
        scales = np.where(scales == 0, 1e-12, scales)
    return float(((group - codes * scales[:, None] - biases[:, None]) ** 2).sum(axis=1).min())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_near_the_best_there_is(bits):
    weight = gaussian(48, 32, seed=bits)
    groups = np.array(weight.astype(mx.float32), np.float64)
    best = sum(brute_force(group, bits) for group in groups)
    assert np.sqrt(errors(weight, QuantSpec(bits, 32), "better").sum() / best) < 1.015


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(BITS),
    st.sampled_from([32, 64, 128]),
    st.sampled_from([mx.bfloat16, mx.float16, mx.float32]),
    st.sampled_from([1e-6, 1e-3, 1, 300]),
    st.sampled_from([0, 1, 100]),
)
def test_no_group_becomes_worse(seed, bits, group_size, dtype, size, shift):
    rng = np.random.default_rng(seed)
    values = np.clip(rng.standard_t(2, (4, 256)) * size + shift * size, -6e4, 6e4)  # for float16
    weight = mx.array(values.astype(np.float32)).astype(dtype)
    spec = QuantSpec(bits, group_size)
    better, fast = (errors(weight, spec, effort) for effort in ("better", "fast"))
    assert (better <= fast * (1 + 1e-5) + 1e-30).all()


# --- special groups


def group_of(kind: str, dtype: mx.Dtype) -> mx.array:
    values = np.zeros((2, 64), np.float32)
    if kind == "constant":
        values[:] = -0.375
    elif kind == "one outlier":
        values[0, 5] = 7
    elif kind == "two values":
        values[:, ::3] = 0.5
    elif kind == "largest":
        values[:] = float(mx.finfo(dtype).max) / 4
        values[:, ::2] *= -1
    elif kind == "least":
        values[:, 1] = float(mx.array(1e-7).astype(dtype))
    return mx.array(values).astype(dtype)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize(
    "kind", ["zeros", "constant", "one outlier", "two values", "largest", "least"]
)
def test_special_groups(kind, dtype):
    weight = group_of(kind, dtype)
    for bits in BITS:
        spec = QuantSpec(bits, 64)
        better, fast = (errors(weight, spec, effort) for effort in ("better", "fast"))
        assert np.isfinite(better).all()
        assert (better <= (0 if kind in ("zeros", "constant") else fast)).all(), bits


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_is_refused(tmp_path, value):
    config = tiny_config()
    weights = random_weights(config)
    weights["model.layers.1.self_attn.o_proj.weight"][3, 4] = value
    source = read_folder(write_hf(tmp_path / "hf", config, weights))
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.o_proj.* not numbers"):
        convert(plan(source, uniform(4), "better"), tmp_path / "out")


# --- the arithmetic


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_stored_values_are_rounded_as_mlx_rounds(dtype):
    words = np.random.default_rng(0).integers(0, 2**32, 20_000, np.uint32)
    edges = [0, 0x80000000, 0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001]
    values = np.concatenate([words, np.array(edges, np.uint32)]).view(np.float32)
    values = values[np.isfinite(values)]
    wanted = np.array(mx.array(values).astype(dtype).astype(mx.float32))
    np.testing.assert_array_equal(stored(np, values, dtype), wanted)
    np.testing.assert_array_equal(np.array(stored(mx, mx.array(values), dtype)), wanted)


@pytest.mark.parametrize("bits", BITS)
def test_mlx_unpacks_what_was_meant(bits):
    rng, rows = np.random.default_rng(bits), 40
    codes = rng.integers(0, 2**bits, (128, rows)).astype(np.uint8)
    scales, biases = (
        stored(np, rng.standard_normal((2, rows)).astype(np.float32), mx.bfloat16) for _ in "ab"
    )
    spec = QuantSpec(bits, 64)
    arrays = quantizing.packed(codes, scales, biases, spec, mx.bfloat16)
    assert [array.dtype for array in arrays] == [mx.uint32, mx.bfloat16, mx.bfloat16]
    wanted = codes * scales.repeat(64, axis=0) + biases.repeat(64, axis=0)
    np.testing.assert_allclose(np.array(dequantize(arrays, spec)).T, wanted, rtol=1e-6, atol=1e-6)
    half = mx.dequantize(*arrays, spec.group_size, spec.bits)  # in 16 bits: each step rounds
    np.testing.assert_allclose(np.array(half.astype(mx.float32)).T, wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_numpy_and_mlx_agree(bits):
    weight = gaussian(96, 256, seed=9)
    columns = np.ascontiguousarray(np.array(weight.astype(mx.float32)).T).reshape(4, 64, 96)
    known = np.zeros((4, 1, 96), np.float32)
    ours = fit(np, columns, bits, mx.bfloat16, (known, known))
    arrays = mx.array(known), mx.array(known)
    theirs = fit(mx, mx.array(columns), bits, mx.bfloat16, arrays)
    for a, b in zip(ours, theirs, strict=True):
        assert np.mean(a == np.array(b)) > 0.99


def test_blocks_change_nothing(monkeypatch):
    weight, spec = gaussian(300, 384, seed=3), QuantSpec(3, 32)
    whole = quantize(weight, mx.bfloat16, spec, "better")
    monkeypatch.setattr(quantizing, "_ROWS_ON_CPU", 7 * 384)
    monkeypatch.setattr(quantizing, "_IN_CACHE", 100)
    pieces = quantize(weight, mx.bfloat16, spec, "better")
    assert all(mx.array_equal(a, b) for a, b in zip(whole, pieces, strict=True))


def test_importance_goes_where_it_is_given():
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((1, 64, 200)).astype(np.float32)
    importance = np.where(np.arange(64) < 8, 50, 1).astype(np.float32)[None, :, None]
    known = (np.zeros((1, 1, 200), np.float32),) * 2

    def found(importance):
        codes, scales, biases = fit(np, weights, 3, mx.bfloat16, known, importance)
        return codes, (weights - codes * scales - biases) ** 2

    plain_codes, plain = found(None)
    same_codes, _ = found(np.full((1, 64, 1), 7, np.float32))
    assert np.mean(same_codes == plain_codes) > 0.98
    _, weighted = found(importance)
    assert (weighted * importance).sum() < 0.8 * (plain * importance).sum()
    assert weighted.sum() > plain.sum()


# --- as a part of a conversion


TINY = tiny_config(vocab_size=320, hidden_size=128, intermediate_size=128, head_dim=32)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_hf(tmp_path_factory.mktemp("hf"), TINY, dtype="BF16")


@pytest.mark.parametrize("bits", [8, 5])
def test_the_model_is_nearer_and_loads_in_mlx_lm(source, tmp_path, bits):
    from mlx_lm.utils import load_model as load_mlx_lm

    def logits(folder: Path) -> np.ndarray:
        config = read_config(folder)
        return np.array(load_model(folder, config, mx.float32)(random_ids(config)))

    wanted, found = logits(source), {}
    for effort in ("fast", "better"):
        convert(plan(read_folder(source), uniform(bits), effort), tmp_path / effort)
        found[effort] = logits(tmp_path / effort)
    fast, better = (np.square(found[effort] - wanted).mean() for effort in ("fast", "better"))
    assert better < 0.9 * fast
    model, _ = load_mlx_lm(tmp_path / "better")
    model.set_dtype(mx.float32)
    theirs = np.array(model(random_ids(TINY)))
    assert abs(theirs - found["better"]).max() < 1e-4 * abs(theirs).max()


def test_another_effort_begins_anew(source, tmp_path, monkeypatch):
    opened = read_folder(source)
    convert(plan(opened, uniform(4), "better"), tmp_path / "straight")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("convert.writer.ShardWriter.finish", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(plan(opened, uniform(4), "fast"), tmp_path / "out")
    convert(plan(opened, uniform(4), "better"), tmp_path / "out")
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_16_bits_take_no_effort(source):
    made = plan(read_folder(source), uniform(16), "better")
    assert {job.effort for job in made.jobs} == {"fast"}
    quantized = plan(read_folder(source), uniform(4), "better")
    assert {j.effort for j in quantized.jobs if "norm" in j.slots[0].name} == {"fast"}
    assert {j.effort for j in quantized.jobs if "proj" in j.slots[0].name} == {"better"}
