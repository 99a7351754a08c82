"""Named recipes: what they give to which matrix, how large that is, and that others can run it."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import mlx.core as mx
import pytest
from checkpoints import random_ids, relative_difference, tiny_config, write_hf

from convert.pipeline import convert
from convert.plan import plan
from convert.readers.safetensors import read_folder
from convert.recipe import RECIPES, named, spec_of
from convert.sizes import disk_bytes, model_slots
from convert.sources.published import PUBLISHED
from mlx_mixtral.cli.shapes import model_shape, published_shape
from mlx_mixtral.config import QuantSpec, read_config
from mlx_mixtral.errors import UsageError
from mlx_mixtral.lab.shapes import SHAPES
from mlx_mixtral.loading import load_model
from mlx_mixtral.network import arrays
from mlx_mixtral.weights import expected_shapes, open_weights

TINY = tiny_config(vocab_size=320, hidden_size=256, intermediate_size=384, head_dim=64)
LAYER = "model.layers.31"
MIXTRAL = SHAPES["8x7b"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_hf(tmp_path_factory.mktemp("hf"), TINY, dtype="BF16")


def spec(name: str, path: str, config=MIXTRAL) -> QuantSpec | None:
    return spec_of(named(name).quantization(config), f"{path}.weight")


def test_what_every_token_meets_keeps_more_bits():
    assert spec("3bit", f"{LAYER}.block_sparse_moe.switch_mlp.up_proj") == QuantSpec(3, 64)
    for path in (f"{LAYER}.self_attn.{p}_proj" for p in "qkvo"):
        assert spec("3bit", path) == QuantSpec(8, 64)
    for path in ("model.embed_tokens", "lm_head"):
        assert spec("2bit", path) == QuantSpec(8, 64)
        assert spec("4bit-fast", path) == QuantSpec(4, 64)
    dense = SHAPES["7b"]
    assert spec("2bit", f"{LAYER}.mlp.down_proj", dense) == QuantSpec(2, 32)
    assert spec("2bit", f"{LAYER}.self_attn.o_proj", dense) == QuantSpec(8, 64)


@pytest.mark.parametrize("name", RECIPES)
def test_router_and_norms_stay(name):
    for path in ("block_sparse_moe.gate", "input_layernorm"):
        assert spec(name, f"{LAYER}.{path}") is None


@pytest.mark.parametrize("name", RECIPES)
def test_matrices_that_are_multiplied_together_are_packed_alike(name):
    attention = {spec(name, f"{LAYER}.self_attn.{p}_proj") for p in "qkv"}
    experts = {spec(name, f"{LAYER}.block_sparse_moe.switch_mlp.{p}_proj") for p in ("gate", "up")}
    assert (len(attention), len(experts)) == (1, 1)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("16bit", 93.4), ("8bit", 49.6), ("4bit", 27.1), ("4bit-fast", 26.3), ("3bit", 21.4),
     ("2bit", 18.6), ("2bit-small", 15.8)],
)  # fmt: skip
def test_sizes_of_8x7b(name, gigabytes):
    """Worked out elsewhere before these recipes were written."""
    nbytes = disk_bytes(MIXTRAL, named(name).quantization(MIXTRAL))
    assert nbytes / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_each_recipe_is_smaller_than_the_one_before():
    sizes = [disk_bytes(MIXTRAL, recipe.quantization(MIXTRAL)) for recipe in RECIPES.values()]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("config", [TINY, replace(TINY, num_local_experts=0),
                                    replace(TINY, tie_word_embeddings=True)])  # fmt: skip
@pytest.mark.parametrize("name", RECIPES)
def test_sizes_are_those_on_disk(tmp_path, name, config):
    source = read_folder(write_hf(tmp_path / "hf", config, dtype="BF16"))
    laid_out = plan(source, named(name).quantization(config))
    convert(laid_out, tmp_path / "out")
    written = open_weights(tmp_path / "out", read_config(tmp_path / "out"))
    wanted = model_slots(config, named(name).quantization(config))
    assert {s.name: s.shape for s in wanted} == {n: w.shape for n, w in written.items()}
    assert sum(slot.nbytes for slot in wanted) == sum(w.nbytes for w in written.values())


@pytest.mark.parametrize("name", RECIPES)
def test_mlx_lm_computes_the_same(source, tmp_path, name, kept_packed):
    from mlx_lm.utils import load_model as load_mlx_lm

    convert(plan(read_folder(source), named(name).quantization(TINY)), tmp_path / "out")
    config = read_config(tmp_path / "out")
    model = load_model(tmp_path / "out", config, mx.float32)
    theirs, _ = load_mlx_lm(tmp_path / "out")
    theirs.set_dtype(mx.float32)
    ids = random_ids(config)
    assert relative_difference(model(ids), theirs(ids)) <= 1e-5
    # q, k and v in one array, gate and up in another
    assert sum("qkv" in n and n.endswith("weight") for n in arrays(model)) == 2


def test_unknown_names():
    with pytest.raises(UsageError, match=r"'4bits' is unknown; choose one of 16bit, 8bit"):
        named("4bits")


def test_published_shapes_have_the_published_parameters():
    for model in PUBLISHED.values():
        assert 2 * model.parameters == disk_bytes(published_shape(model), None)
    assert model_shape("8x22b").vocab_size == 32000
    assert model_shape("8x22b-instruct").vocab_size == 32768
    assert model_shape("instruct") == model_shape("8x7b") == MIXTRAL
    assert len(expected_shapes(model_shape("demo"))) > 30


# --- as a person runs it


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlx_mixtral", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "80"}
    )


def test_convert_takes_a_recipe(source, tmp_path):
    done = run("convert", source, "-o", tmp_path / "out", "--recipe", "3bit")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    made = read_config(tmp_path / "out").quantization
    assert made == named("3bit").quantization(TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "7bit"], "recipe '7bit' is unknown; choose one of 16bit, "),
        (["--recipe", "4bit", "--bits", "4"], "one of --bits (with --group-size), --recipe and"),
        (["--recipe", "4bit", "--group-size", "32"], "leave out the others"),
    ],
)
def test_refused_in_one_line(source, tmp_path, options, message):
    done = run("convert", source, "-o", tmp_path / "out", *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


def test_the_list_of_them():
    done = run("recipes")
    assert done.returncode == 0
    assert "\n4bit-fast    26.3 GB   4.5  4 bits throughout" in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 80
    rows = json.loads(run("recipes", "demo", "--json").stdout)
    assert [row["name"] for row in rows] == list(RECIPES)
    assert rows[0]["bits"] == 16
