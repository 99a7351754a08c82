"""The network against transformers (golden values), mlx-lm, a naive NumPy one, and itself."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import reference
from checkpoints import (
    in_chunks,
    quantization,
    random_ids,
    random_weights,
    relative_difference,
    tiny_config,
    write_hf,
    write_mlx,
)
from mlx.utils import tree_flatten

from mlx_mixtral.config import read_config
from mlx_mixtral.generation import kv
from mlx_mixtral.generation.prompt_cache import make_caches
from mlx_mixtral.loading import load_model
from mlx_mixtral.network import places
from mlx_mixtral.shards import read_header

pytestmark = pytest.mark.usefixtures("kept_packed")

GOLDEN = sorted(p.parent for p in (Path(__file__).parent / "golden").glob("*/golden.npz"))
DENSE_WINDOW = {"num_local_experts": 0, "sliding_window": 5, "num_hidden_layers": 3}


def ours(folder):
    return load_model(folder, read_config(folder))


# --- transformers


def golden(folder):
    values = np.load(folder / "golden.npz")
    return values["ids"], values["logits"]


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_logits_are_those_of_transformers(folder):
    ids, want = golden(folder)
    assert relative_difference(ours(folder)(mx.array(ids)), want) < 5e-5


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_the_naive_reference_agrees_with_transformers(folder):
    ids, want = golden(folder)
    config, weights = reference.read(folder)
    assert relative_difference(reference.logits(config, weights, ids[0]), want[0]) < 5e-5


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_golden_logits_step_by_step(folder):
    ids, want = golden(folder)
    model = ours(folder)
    caches = make_caches(model.config)
    steps = [model(mx.array(ids[:, i : i + 1]), caches) for i in range(ids.shape[1])]
    assert relative_difference(mx.concatenate(steps, axis=1), want) < 5e-5


def test_the_golden_cases_differ_where_it_matters():
    """What the folders are for, so that none is lost unnoticed."""
    configs = {p.name: read_config(p) for p in GOLDEN}
    raw = {p.name: json.loads((p / "config.json").read_text()) for p in GOLDEN}
    sharing = {c.num_attention_heads // c.num_key_value_heads for c in configs.values()}
    assert sharing == {1, 2, 4}
    moe = [c for c in configs.values() if c.is_moe]
    assert {c.num_local_experts for c in moe} == {4, 8}
    assert {c.num_experts_per_tok for c in moe} == {1, 2, 3}
    assert {c.rope_theta for c in moe} == {1e4, 5e4, 1e6}
    assert any(c.tie_word_embeddings for c in moe)
    assert any(c.head_dim * c.num_attention_heads != c.hidden_size for c in moe)
    ids, _ = golden(Path(__file__).parent / "golden" / "dense_window")
    assert configs["dense_window"].sliding_window < ids.shape[1]
    assert "rope_parameters" in raw["moe_8_top2"]
    assert "rope_parameters" not in raw["moe_float16_config4"]
    dtypes = {
        s.dtype for p in GOLDEN for f in p.glob("*.safetensors") for s in read_header(f).values()
    }
    assert dtypes == {"F32", "F16", "BF16"}
    fused = read_header(Path(__file__).parent / "golden" / "moe_fused" / "model.safetensors")
    assert "model.layers.0.mlp.experts.gate_up_proj" in fused


def test_a_long_text_against_the_reference(tmp_path):
    """Longer than the golden ones, through sorted experts: 70 tokens."""
    config = tiny_config(num_hidden_layers=1, rope_theta=1e4)
    weights = random_weights(config)
    ids = random_ids(config, length=70)
    got = ours(write_hf(tmp_path, config, weights))(ids)
    double = {name: w.astype(np.float64) for name, w in weights.items()}
    want = reference.logits(config.to_hf(), double, np.array(ids[0]))
    assert relative_difference(got[0], want) < 5e-5


# --- mlx-lm
#
# Not compared: an explicit head_dim of a Mixtral and a dense model's sliding window, which
# mlx-lm 0.32 does not honour. The golden values stand for these two.


def theirs(folder):
    from mlx_lm.utils import load_model as mlx_lm_load

    model, _ = mlx_lm_load(folder)
    model.set_dtype(mx.float32)
    return model


def assert_same_logits(folder, ids):
    difference = relative_difference(ours(folder)(ids), theirs(folder)(ids))
    assert difference < 1e-5


ROUTERS = [f"model.layers.{n}.block_sparse_moe.gate" for n in range(2)]
KINDS = {
    "16 bit": ({}, {}),
    "tied": ({"tie_word_embeddings": True}, {}),
    "top 1, no sharing": ({"num_experts_per_tok": 1, "num_key_value_heads": 4}, {}),
    "8 experts, rope 1e4": ({"num_local_experts": 8, "rope_theta": 1e4}, {}),
    "dense": ({"num_local_experts": 0}, {}),
    "8 bit": ({"quantization": quantization(8)}, {}),
    "4 bit": ({"quantization": quantization(4)}, {}),
    "3 bit, groups of 32": ({"quantization": quantization(3, 32)}, {}),
    "4 bit dense, tied": (
        {"quantization": quantization(4), "num_local_experts": 0, "tie_word_embeddings": True},
        {},
    ),
    "router unquantized": (
        {"quantization": quantization(4, **dict.fromkeys(ROUTERS))},
        {"quantized": lambda path: "norm" not in path},
    ),
    "router unquantized, unsaid": (
        {"quantization": quantization(4)},
        {"quantized": lambda path: "norm" not in path and ".gate" not in path[-5:]},
    ),
    "only experts quantized": (
        {"quantization": quantization(4)},
        {"quantized": lambda path: "switch_mlp" in path},
    ),
    "embedding unquantized": (
        {"quantization": quantization(8)},
        {"quantized": lambda path: "norm" not in path and "embed" not in path},
    ),
    "mixed bits": (
        {
            "quantization": quantization(
                3,
                **{
                    "lm_head": 8,
                    "model.embed_tokens": 6,
                    "model.layers.0.self_attn.v_proj": 8,
                    "model.layers.1.block_sparse_moe.switch_mlp.down_proj": 4,
                    "model.layers.1.block_sparse_moe.switch_mlp.up_proj": 2,
                },
            )
        },
        {},
    ),
    "mxfp4": ({"quantization": quantization(4, 32, "mxfp4")}, {}),
    "nvfp4": ({"quantization": quantization(4, 16, "nvfp4")}, {}),
    "mxfp8": ({"quantization": quantization(8, 32, "mxfp8")}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_ours_runs_in_mlx_lm_with_the_same_logits(kind, tmp_path):
    changes, saving = KINDS[kind]
    config = tiny_config(**changes)
    folder = write_mlx(tmp_path, config, **saving)
    assert_same_logits(folder, random_ids(config, batch=2, length=40))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_a_hugging_face_checkpoint_as_in_mlx_lm(dtype, shards, tmp_path):
    config = tiny_config()
    folder = write_hf(tmp_path, config, dtype=dtype, shards=shards)
    assert_same_logits(folder, random_ids(config, batch=2, length=40))


@pytest.mark.parametrize(
    ("bits", "group", "mode"),
    [(8, 64, "affine"), (4, 64, "affine"), (3, 32, "affine"), (4, 32, "mxfp4"), (None,) * 3],
)
@pytest.mark.parametrize("experts", [4, 0])
def test_a_folder_that_mlx_lm_wrote(bits, group, mode, experts, tmp_path):
    from mlx_lm.utils import load_config, quantize_model, save_config, save_model

    source = write_hf(tmp_path / "hf", tiny_config(num_local_experts=experts))
    model, config = theirs(source), load_config(source)
    if bits:
        model, config = quantize_model(model, config, group, bits, mode)
    save_model(tmp_path / "out", model)
    save_config(config, tmp_path / "out" / "config.json")
    read = read_config(tmp_path / "out")
    assert (read.quantization is None) == (bits is None)
    assert_same_logits(tmp_path / "out", random_ids(read, batch=2, length=40))


def test_a_recipe_of_mlx_lm_with_bits_by_path(tmp_path):
    from mlx_lm.utils import load_config, quantize_model, save_config, save_model

    def recipe(path, module):
        if path.endswith("block_sparse_moe.gate"):
            return False
        return {"bits": 8 if "down" in path or "head" in path else 4, "group_size": 32}

    source = write_hf(tmp_path / "hf", tiny_config())
    model, config = quantize_model(
        theirs(source), load_config(source), 64, 4, quant_predicate=recipe
    )
    save_model(tmp_path / "out", model)
    save_config(config, tmp_path / "out" / "config.json")
    assert_same_logits(tmp_path / "out", random_ids(tiny_config(), length=40))


@pytest.mark.parametrize("changes", [{}, {"quantization": quantization(4)}])
def test_an_era_b_folder_holds_the_same_model_as_era_c(changes, tmp_path):
    """weights.NN.safetensors with one tensor an expert; mlx-lm itself no longer looks for it."""
    config = tiny_config(**changes)
    ids = random_ids(config, length=40)
    b = ours(write_mlx(tmp_path / "b", config, era="B"))
    c = ours(write_mlx(tmp_path / "c", config))
    assert mx.array_equal(b(ids), c(ids))
    for file in (tmp_path / "b").glob("weights.*"):
        file.rename(file.with_name(f"model-{file.name}"))
    assert relative_difference(b(ids), theirs(tmp_path / "b")(ids)) < 1e-5


def test_parameters_have_mlx_lms_names(tmp_path):
    folder = write_mlx(tmp_path, tiny_config(quantization=quantization(4)))
    mine = [part for parts in places(ours(folder)).values() for part in parts]
    assert sorted(mine) == sorted(name for name, _ in tree_flatten(theirs(folder).parameters()))


# --- the model against itself


@pytest.fixture(scope="module", params=["moe", "moe 4 bit", "window", "window of 1"])
def model(request, tmp_path_factory):
    changes = {
        "moe": {},
        "moe 4 bit": {"quantization": quantization(4)},
        "window": DENSE_WINDOW,
        "window of 1": DENSE_WINDOW | {"sliding_window": 1},
    }[request.param]
    config = tiny_config(**changes)
    return ours(write_mlx(tmp_path_factory.mktemp("model"), config))


def run_in_chunks(model, ids, sizes, caches=None):
    caches = make_caches(model.config) if caches is None else caches
    chunks = [model(ids[:, part], caches) for part in in_chunks(ids.shape[1], sizes)]
    assert caches[0].offset == ids.shape[1]
    return mx.concatenate(chunks, axis=1)


@pytest.mark.parametrize(
    "sizes",
    [[1], [2], [3], [4], [5], [6], [7], [23], [24], [4, 1], [5, 1], [6, 1], [10, 1], [5, 5, 1, 3],
     [1, 4, 1, 5, 1, 6], [12, 1, 1, 10], [1, 1, 1, 1, 1, 1, 1, 10, 1]],
    ids=str,
)  # fmt: skip
def test_in_pieces_as_at_once(model, sizes):
    """Prefill and decoding in any steps, around the window too, are one and the same."""
    ids = random_ids(model.config, batch=2, length=24)
    assert relative_difference(run_in_chunks(model, ids, sizes), model(ids)) < 1e-5


def test_each_of_a_batch_as_alone(model):
    ids = random_ids(model.config, batch=2, length=24)
    alone = [model(ids[i : i + 1]) for i in range(2)]
    assert relative_difference(model(ids), mx.concatenate(alone)) < 1e-5
    caches = [run_in_chunks(model, ids[i : i + 1], [9, 1]) for i in range(2)]
    assert relative_difference(run_in_chunks(model, ids, [9, 1]), mx.concatenate(caches)) < 1e-5


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 7, 20])
def test_what_comes_later_changes_nothing_before(model, length):
    ids = random_ids(model.config, length=24)
    assert relative_difference(model(ids[:, :length]), model(ids)[:, :length]) < 1e-5


@pytest.mark.parametrize("last", [1, 3])
@pytest.mark.parametrize("before", [0, 4, 11])
def test_the_last_tokens_alone_are_as_among_all(model, before, last):
    ids = random_ids(model.config, length=before + 7, batch=2)
    whole, part = make_caches(model.config), make_caches(model.config)
    for caches in (whole, part):
        if before:
            model(ids[:, :before], caches)
    want = model.hidden(ids[:, before:], whole)[:, -last:]
    got = model.hidden(ids[:, before:], part, last=last)
    assert got.shape == want.shape
    assert relative_difference(got, want) < 1e-5
    # and what follows finds the same keys and values
    assert relative_difference(model(ids[:, :1], part), model(ids[:, :1], whole)) < 1e-5


def test_the_last_tokens_alone_without_a_cache(model):
    ids = random_ids(model.config, length=12)
    got = model.hidden(ids, last=2)
    assert relative_difference(got, model.hidden(ids)[:, -2:]) < 1e-5


def test_a_window_forgets_what_is_behind_it(tmp_path, monkeypatch):
    """70 single steps through a window of 5, with buffers that are soon full."""
    monkeypatch.setattr(kv, "STEP", 4)
    monkeypatch.setattr(kv, "REWIND", 3)
    model = ours(write_mlx(tmp_path, tiny_config(**DENSE_WINDOW)))
    ids = random_ids(model.config, length=70)
    caches = make_caches(model.config)
    got = run_in_chunks(model, ids, [13, 1], caches)
    assert relative_difference(got, model(ids)) < 1e-5
    assert caches[0].places == 12


def test_a_window_also_holds_over_a_cache_that_keeps_all(tmp_path):
    from mlx_lm.models.cache import KVCache, RotatingKVCache

    model = ours(write_mlx(tmp_path, tiny_config(**DENSE_WINDOW)))
    ids = random_ids(model.config, length=24)
    for make in (KVCache, lambda: RotatingKVCache(max_size=9), lambda: RotatingKVCache(64)):
        for sizes in ([1], [8, 1], [4, 5, 6], [24]):
            got = run_in_chunks(model, ids, sizes, [make() for _ in model.model.layers])
            assert relative_difference(got, model(ids)) < 1e-5


def test_the_window_is_exactly_that_many_tokens(tmp_path):
    """One layer: a token sees itself and the four before it, not the fifth."""
    config = tiny_config(**(DENSE_WINDOW | {"num_hidden_layers": 1}))
    model = ours(write_mlx(tmp_path, config))
    ids = random_ids(config, length=12)
    changed = mx.array(ids)
    changed[0, 3] = (ids[0, 3] + 1) % config.vocab_size
    moved = mx.abs(model(ids) - model(changed)).max(axis=-1)[0] > 1e-6
    assert [i for i, m in enumerate(moved.tolist()) if m] == [3, 4, 5, 6, 7]


def test_hidden_states_and_head_make_the_logits(model):
    ids = random_ids(model.config, length=6)
    assert mx.array_equal(model.head(model.hidden(ids)), model(ids))
    assert model.hidden(ids).shape == (1, 6, model.config.hidden_size)


def test_golden_folders_are_small():
    assert sum(f.stat().st_size for p in GOLDEN for f in p.iterdir()) < 1.5e6
