"""Experts and their router: hand-computed choices, and the same answers on every path."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from checkpoints import random_ids, relative_difference, tiny_config, write_mlx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_mixtral.experts.resident import QuantizedStackedLinear, ResidentExperts, StackedLinear
from mlx_mixtral.loading import load_model
from mlx_mixtral.model.moe import SparseMoE, route

FUZZ = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# --- the router


def test_the_best_come_first_and_equals_by_number():
    logits = mx.array([[1.0, 3, 3, 2], [5, 5, 5, 5], [0, 1, 2, 3], [-1, 0, -1, 0]])
    indices, weights = route(logits, 3)
    assert indices.tolist() == [[1, 2, 3], [0, 1, 2], [3, 2, 1], [1, 3, 0]]
    assert weights[1].tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("experts", [4, 8, 64])
def test_ties_go_to_the_lower_number_however_many(experts):
    indices, _ = route(mx.zeros((5, experts)), 4)
    assert indices.tolist() == [[0, 1, 2, 3]] * 5


def test_top_k_first_then_softmax():
    """By hand: of logits 2, 1, 0 the first two share as e and 1, whatever the third is."""
    _, weights = route(mx.array([[2.0, 1, 0], [2, 1, -50]]), 2)
    e = np.e / (np.e + 1)
    assert weights[0].tolist() == pytest.approx([e, 1 - e], rel=1e-6)
    assert weights[1].tolist() == pytest.approx([e, 1 - e], rel=1e-6)


def test_one_expert_has_all_the_weight():
    assert route(mx.array([[0.0, 9.0]]), 1)[1].tolist() == [[1.0]]


@FUZZ
@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 8]), st.integers(1, 4))
def test_routing_against_numpy(seed, experts, k):
    # Halves: ties are frequent, and exact.
    logits = np.random.default_rng(seed).integers(-6, 6, (7, experts)) / 2
    indices, weights = route(mx.array(logits.astype(np.float32)), k)
    want = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    assert indices.tolist() == want.tolist()
    chosen = np.exp(np.take_along_axis(logits, want, -1))
    assert np.allclose(np.array(weights), chosen / chosen.sum(-1, keepdims=True), atol=1e-6)


def spy_moe(gate, k=1):
    """A mixture whose experts answer nothing but are asked; who was chosen is in ``asked``."""
    asked = []

    def experts(x, indices):
        asked.append((x.dtype, indices))
        return mx.broadcast_to(x[:, None], (*indices.shape, x.shape[-1]))

    e, d = gate.shape
    moe = SparseMoE(tiny_config(hidden_size=d, num_local_experts=e, num_experts_per_tok=k), experts)
    moe.gate.weight = gate
    return moe, asked


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_the_router_works_in_float32(dtype, rounded):
    """In 16 bits both logits round to the same number, and the wrong expert wins the tie."""
    big, step = (100.0, 0.25) if dtype == mx.bfloat16 else (1000.0, 0.125)
    gate = mx.array([[big, 0.0], [big, step]])
    x = mx.ones((1, 1, 2), dtype)
    logits16 = (x.reshape(1, 2) @ gate.T.astype(dtype))[0]
    assert logits16[0].item() == logits16[1].item()

    moe, asked = spy_moe(gate.astype(dtype) if rounded else gate)
    y = moe(x)
    assert asked[0][1].tolist() == [[1]]
    assert (asked[0][0], y.dtype) == (dtype, dtype)  # the rest stays in 16 bits


def test_a_rounded_router_weight_stays_float32_after_loading(tmp_path):
    config = tiny_config()
    model = load_model(write_mlx(tmp_path, config), config, mx.bfloat16)
    moe = model.model.layers[0].block_sparse_moe
    assert moe.gate.weight.dtype == mx.float32
    assert moe.switch_mlp.gate_up_proj.weight.dtype == mx.bfloat16


def test_weights_and_answers_are_matched():
    """Expert e multiplies by e + 1; token by token the weighted sum is computed by hand."""
    gate = mx.array([[1.0, 0], [0, 1], [-1, 0]])
    config = tiny_config(hidden_size=2, num_local_experts=3, num_experts_per_tok=2)
    moe = SparseMoE(config, lambda x, i: x[:, None] * (i[..., None] + 1))
    moe.gate.weight = gate
    x = np.array([[[3.0, 1.0], [-2.0, 0.5]]])
    by_hand = []
    for t in x[0]:
        logits = np.array(gate) @ t
        a, b = np.argsort(-logits, kind="stable")[:2]
        share = 1 / (1 + np.exp(logits[b] - logits[a]))
        by_hand.append(t * (share * (a + 1) + (1 - share) * (b + 1)))
    assert np.allclose(np.array(moe(mx.array(x))), [by_hand], atol=1e-6)


# --- resident experts


def random_experts(config, seed=0, bits=None):
    experts = ResidentExperts(config)
    rng = mx.random.key(seed)
    for name in ("gate_up_proj", "down_proj"):
        module = experts[name]
        weight = mx.random.normal(module.weight.shape, scale=0.2, key=rng)
        rng = mx.random.split(rng)[0]
        if bits is None:
            module.weight = weight
            continue
        module = module.to_quantized(32, bits, "affine")
        module.weight, module.scales, module.biases = mx.quantize(weight, 32, bits)
        experts[name] = module
    return experts


def weight_of(linear):
    if isinstance(linear, StackedLinear):
        return np.array(linear.weight, np.float64)
    assert isinstance(linear, QuantizedStackedLinear)
    parts = linear.weight, linear.scales, linear.biases
    return np.array(mx.dequantize(*parts, linear.group_size, linear.bits), np.float64)


def one_by_one(experts, x, indices):
    gate_up, down = (weight_of(experts[p]) for p in ("gate_up_proj", "down_proj"))
    gate, up = np.split(gate_up, 2, axis=1)
    out = np.zeros((*indices.shape, x.shape[-1]))
    for t, chosen in enumerate(indices):
        for k, e in enumerate(chosen):
            g = gate[e] @ x[t]
            out[t, k] = down[e] @ (g / (1 + np.exp(-g)) * (up[e] @ x[t]))
    return out


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("tokens", [1, 3, 7, 8, 15, 16, 17, 40])
def test_every_path_answers_like_a_loop_over_experts(tokens, bits):
    config = tiny_config(num_local_experts=8)
    experts = random_experts(config, bits=bits)
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, 64)).astype(np.float32)
    indices = np.array([rng.permutation(8)[:2] for _ in range(tokens)], np.uint32)
    got = experts(mx.array(x), mx.array(indices))
    assert relative_difference(got, one_by_one(experts, x, indices)) < 1e-5


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_sorted_equals_unsorted(k, bits):
    config = tiny_config(num_local_experts=4)
    experts = random_experts(config, bits=bits)
    x = mx.random.normal((33, 64), key=mx.random.key(1))
    indices = mx.argsort(mx.random.normal((33, 4), key=mx.random.key(2)), axis=-1)[:, :k]
    results = []
    for threshold in (0, 1 << 30):
        experts._sort_from = threshold
        results.append(experts(x, indices))
    assert results[0].shape == (33, k, 64)
    assert relative_difference(*results) < 1e-6


@pytest.fixture
def gathers(monkeypatch):
    """Every gathered product of the test: (is it said to be sorted?, its ids)."""
    calls = []
    for name in ("gather_mm", "gather_qmm"):
        original = getattr(mx, name)

        def recorder(*args, _original=original, **kwargs):
            assert "lhs_indices" not in kwargs  # METAL: the fast path wants it left out
            calls.append((kwargs.get("sorted_indices", False), kwargs["rhs_indices"], args[0]))
            return _original(*args, **kwargs)

        monkeypatch.setattr(mx, name, recorder)
    return calls


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize(("experts", "k"), [(4, 1), (4, 3), (8, 2)])
def test_ids_that_are_said_to_be_sorted_are(experts, k, bits, gathers):
    """The CPU ignores the flag; Metal's kernels would answer wrongly without a word."""
    config = tiny_config(num_local_experts=experts, num_experts_per_tok=k)
    layer = random_experts(config, bits=bits)
    first_sorted = max(16, 4 * experts)
    for tokens in (1, 2, 5, 16, 17, 50):
        gathers.clear()
        x = mx.random.normal((tokens, 64), key=mx.random.key(tokens))
        indices = mx.random.randint(0, experts, (tokens, k), key=mx.random.key(tokens))
        layer(x, indices)
        assert len(gathers) == 2
        for said, ids, rows in gathers:
            assert said == (tokens * k >= first_sorted)
            if said:
                values = ids.tolist()
                assert values == sorted(values)
                assert rows.shape[:-1] == (tokens * k, 1)  # one row a product: Metal's M == 1


def test_sorted_ids_within_a_whole_model(tmp_path, gathers, monkeypatch):
    monkeypatch.setattr("mlx_mixtral.cpu.use_system_blas", lambda: False)
    config = tiny_config()
    model = load_model(write_mlx(tmp_path, config), config)
    mx.eval(model(random_ids(config, batch=3, length=20)))
    said = [ids for is_sorted, ids, _ in gathers if is_sorted]
    assert len(said) == 2 * config.num_hidden_layers
    for ids in said:
        assert ids.tolist() == sorted(ids.tolist())


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_the_quantized_form_has_the_shapes_of_mx_quantize(mode):
    empty = StackedLinear(4, 64, 96).to_quantized(32, 4, mode)
    assert isinstance(empty, nn.Module)
    parts = mx.quantize(mx.zeros((4, 96, 64)), 32, 4, mode)
    for name, part in zip(("weight", "scales", "biases"), parts, strict=False):
        assert empty[name].shape == part.shape
    assert ("biases" in empty) == (mode == "affine")
