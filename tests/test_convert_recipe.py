"""Recipes: pure data."""

import pytest

from convert.recipe import as_it_is, check_shapes, spec_of, uniform
from mlx_mixtral.config import QuantSpec
from mlx_mixtral.errors import UsageError

LAYER = "model.layers.3"


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens", "lm_head", f"{LAYER}.self_attn.k_proj", f"{LAYER}.mlp.gate_proj"]
    + [f"{LAYER}.block_sparse_moe.switch_mlp.{w}_proj" for w in ("gate", "up", "down")],
)
def test_matrices_are_quantized(name):
    assert spec_of(uniform(3, 32), f"{name}.weight") == QuantSpec(3, 32)


@pytest.mark.parametrize(
    "name",
    [
        "model.norm",
        f"{LAYER}.input_layernorm",
        f"{LAYER}.post_attention_layernorm",
        f"{LAYER}.block_sparse_moe.gate",
    ],
)
def test_router_and_norms_never_are(name):
    assert spec_of(uniform(3, 32), f"{name}.weight") is None


def test_every_tensor_as_it_is():
    specs = {
        f"{LAYER}.self_attn.q_proj.weight": QuantSpec(4, 64),
        f"{LAYER}.self_attn.k_proj.weight": QuantSpec(4, 64),
        f"{LAYER}.self_attn.v_proj.weight": QuantSpec(6, 32),
        f"{LAYER}.block_sparse_moe.gate.weight": QuantSpec(8, 64),
        f"{LAYER.replace('3', '4')}.block_sparse_moe.gate.weight": None,
        f"{LAYER}.input_layernorm.weight": None,
        "lm_head.weight": None,
    }
    recipe = as_it_is(specs)
    assert recipe.default == QuantSpec(4, 64)
    assert recipe.overrides.keys() == {
        f"{LAYER}.self_attn.v_proj",
        f"{LAYER}.block_sparse_moe.gate",
        "lm_head",
    }
    assert {name: spec_of(recipe, name) for name in specs} == specs
    assert as_it_is({"lm_head.weight": None}) is None


def test_16_bits_quantize_nothing():
    assert uniform(16) is None
    assert spec_of(None, "lm_head.weight") is None


@pytest.mark.parametrize(("bits", "group_size"), [(7, 64), (1, 64), (0, 64), (4, 16), (4, 0)])
def test_values_mlx_does_not_have(bits, group_size):
    with pytest.raises(UsageError, match="not possible; choose"):
        uniform(bits, group_size)


def test_no_group_size_fits():
    with pytest.raises(UsageError, match=r"lm_head.weight has rows of 40 .*--bits 16"):
        check_shapes(uniform(4, 64), {"lm_head.weight": (8, 40)})


def test_the_router_may_have_any_width():
    check_shapes(uniform(4, 64), {f"{LAYER}.block_sparse_moe.gate.weight": (8, 40)})
