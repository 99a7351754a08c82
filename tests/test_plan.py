"""What keeps its codes, what is requantized, and at how many bits."""

from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import pytest
from checkpoints import random_weights, tiny_config
from formats_gguf import tensors_of, write_gguf
from gguf import GGMLQuantizationType as Type

from convert.pipeline import convert
from convert.plan import own_recipe, plan
from convert.readers import Source, Tensor
from convert.readers.detect import open_source
from convert.recipe import uniform
from mlx_mixtral.config import QuantSpec, read_config
from mlx_mixtral.loading import load_model

FOUR, EIGHT = QuantSpec(4, 32), QuantSpec(8, 32)
WIDE = tiny_config(hidden_size=256, intermediate_size=256, head_dim=64)


@dataclass(frozen=True)
class Stub:
    """A matrix of which only the description matters."""

    spec: QuantSpec | None
    exact: bool
    shape: tuple[int, ...] = (64, 64)
    dtype: mx.Dtype = mx.float16
    nbytes: int = 100
    files: tuple[Path, ...] = (Path("x"),)


def source(**tensors):
    names = {path.replace("__", "."): parts for path, parts in tensors.items()}
    made = {
        f"{p}.weight": Tensor(f"{p}.weight", parts, len(parts) > 1) for p, parts in names.items()
    }
    return Source(None, tiny_config(), made, "stub")


def test_experts_of_one_kind_keep_their_codes():
    alike = Tensor("x", (Stub(FOUR, True), Stub(FOUR, True)), stacked=True)
    assert (alike.spec, alike.exact) == (FOUR, True)


@pytest.mark.parametrize("other", [Stub(EIGHT, True), Stub(FOUR, False), Stub(None, False)])
def test_experts_of_several_kinds_do_not(other):
    """One tensor has one format: all of them are written in the widest."""
    mixed = Tensor("x", (Stub(FOUR, True), other), stacked=True)
    assert not mixed.exact
    assert mixed.spec == (None if other.spec is None else max(FOUR, other.spec, key=str))


def test_a_router_that_cannot_stay_goes_back_to_16_bits():
    for exact in (True, False):
        recipe = own_recipe(
            source(
                lm_head=(Stub(FOUR, True),),
                model__layers__0__block_sparse_moe__gate=(Stub(EIGHT, exact),),
            )
        )
        wanted = {"model.layers.0.block_sparse_moe.gate": EIGHT} if exact else {}
        assert dict(recipe.overrides) == wanted


def test_asking_for_the_bits_that_advice_has_is_not_keeping():
    """Q6_K is best requantized at 8 bits in groups of 64; that is no code of its own."""
    inexact = source(lm_head=(Stub(QuantSpec(8, 64), False),))
    assert not plan(inexact, uniform(8)).kept("lm_head.weight")
    exact = source(lm_head=(Stub(QuantSpec(8, 64), True),))
    assert plan(exact, uniform(8)).kept("lm_head.weight")
    assert not plan(exact, uniform(8, 32)).kept("lm_head.weight")


@pytest.mark.parametrize("bits", [None, 8, 16])
def test_a_mix_of_kinds_from_end_to_end(tmp_path, bits):
    """Q4_K_M and its like: several types in one file, some kept and some not."""

    def kind(name: str) -> Type:
        return Type.Q6_K if "ffn_down" in name or name == "output.weight" else Type.Q4_0

    weights = random_weights(WIDE)
    write_gguf(tmp_path / "x.gguf", WIDE, tensors_of(WIDE, weights), kind)
    opened = open_source(tmp_path / "x.gguf")
    made = plan(opened, own_recipe(opened) if bits is None else uniform(bits))
    kept = {name for name in opened.tensors if made.kept(name)}
    down = "model.layers.0.block_sparse_moe.switch_mlp.down_proj.weight"
    if bits is None:
        assert made.spec("lm_head.weight") == made.spec(down) == QuantSpec(8, 64)
        assert made.spec("model.embed_tokens.weight") == FOUR
        assert len(kept) == 1 + 2 * 6
    else:
        assert not kept
    convert(made, tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert replace(config, quantization=None) == replace(WIDE, quantization=None)
    logits = load_model(tmp_path / "out", config, mx.float32)(mx.array([[5, 6, 7]]))
    assert mx.isfinite(logits).all()
