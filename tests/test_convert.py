"""Conversion from end to end: the same model comes out that went in, and mlx-lm agrees."""

import json
import os
from pathlib import Path

import hf_checkpoint as hf
import mlx.core as mx
import pytest

from convert.pipeline import convert, plan
from convert.readers.safetensors import read_folder
from convert.recipe import uniform
from mlx_mixtral.config import read_config
from mlx_mixtral.errors import ModelError, UsageError
from mlx_mixtral.loading import load_model

TINY = hf.Shape()
DENSE = hf.Shape(num_local_experts=0)
IDS = mx.array([[1, 17, 300, 5, 44, 211, 9]])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    return hf.write(folder, TINY, hf.tensors(TINY), shards=3)


def run(source: Path, out: Path, bits: int = 4, group_size: int = 64, **options) -> Path:
    convert(plan(read_folder(source), uniform(bits, group_size)), out, **options)
    return out


def read(folder: Path) -> dict[str, mx.array]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {file: mx.load(str(folder / file)) for file in set(index["weight_map"].values())}
    assert sum(map(len, files.values())) == len(index["weight_map"])
    return {name: files[file][name] for name, file in index["weight_map"].items()}


def same(a: mx.array, b: mx.array) -> bool:
    """Equal bit for bit, dtype and shape included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return mx.array_equal(a.view(mx.uint8), b.view(mx.uint8)).item()


def stacked(weights: dict[str, mx.array], shape: hf.Shape) -> dict[str, mx.array]:
    """The checkpoint under mlx-lm's names, stacked by hand."""
    out = {name: w for name, w in weights.items() if ".experts." not in name}
    for n in range(shape.num_hidden_layers if shape.num_local_experts else 0):
        moe = f"model.layers.{n}.block_sparse_moe"
        for w, name in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
            experts = range(shape.num_local_experts)
            out[f"{moe}.switch_mlp.{name}.weight"] = mx.stack(
                [weights[f"{moe}.experts.{e}.{w}.weight"] for e in experts]
            )
    return out


def mlx_lm_logits(folder: Path) -> mx.array:
    from mlx_lm.utils import load_model as load_mlx_lm

    model, _ = load_mlx_lm(folder)
    model.set_dtype(mx.float32)
    return model(IDS)


def our_logits(folder: Path) -> mx.array:
    return load_model(folder, read_config(folder), mx.float32)(IDS)


def assert_same_logits(folder: Path) -> None:
    theirs, ours = mlx_lm_logits(folder), our_logits(folder)
    assert mx.std(theirs) > 0.1  # the comparison means something
    assert mx.abs(ours - theirs).max() <= 1e-5 * mx.abs(theirs).max()


# --- what comes out


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_the_bits_are_those_of_mlx_lm(source, tmp_path, bits, group_size):
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model as load_mlx_lm
    from mlx_lm.utils import quantize_model

    ours = read(run(source, tmp_path / "out", bits, group_size))
    model, config = load_mlx_lm(source)
    model, config = quantize_model(model, config, group_size, bits)
    theirs = dict(tree_flatten(model.parameters()))
    routers = {name for name in theirs if ".block_sparse_moe.gate." in name}
    assert {name for name in ours if "scales" in name} == {
        name for name in theirs.keys() - routers if "scales" in name
    }
    for name in theirs.keys() - routers:
        assert same(ours[name], theirs[name]), name
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["quantization"] == written["quantization_config"] == config["quantization"]


@pytest.mark.parametrize("bits", [6, 5])
def test_other_bits_load_in_mlx_lm(source, tmp_path, bits):
    assert_same_logits(run(source, tmp_path / "out", bits))


@pytest.mark.parametrize("bits", [16, 8, 4, 3, 2])
def test_logits_are_those_of_mlx_lm(source, tmp_path, bits):
    assert_same_logits(run(source, tmp_path / "out", bits))


@pytest.mark.parametrize("shape", [TINY, DENSE], ids=["moe", "dense"])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_16_bits_change_only_the_layout(tmp_path, shape, dtype):
    weights = hf.tensors(shape, dtype)
    source = hf.write(tmp_path / "hf", shape, weights)
    written, expected = read(run(source, tmp_path / "out", 16)), stacked(weights, shape)
    assert written.keys() == expected.keys()
    assert all(same(written[name], expected[name]) for name in expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization" not in config
    assert config["torch_dtype"] == str(dtype).removeprefix("mlx.core.")


def test_the_router_and_the_norms_stay_as_they_are(source, tmp_path):
    written, weights = read(run(source, tmp_path / "out", 2)), hf.tensors(TINY)
    kept = [name for name in weights if "norm" in name or ".block_sparse_moe.gate." in name]
    assert len(kept) == 3 * TINY.num_hidden_layers + 1
    assert all(same(written[name], weights[name]) for name in kept)


@pytest.mark.parametrize("bits", [16, 4])
def test_float32_becomes_bfloat16(tmp_path, bits):
    weights = hf.tensors(TINY, mx.float32)
    wide = hf.write(tmp_path / "f32", TINY, weights)
    narrow = {name: w.astype(mx.bfloat16) for name, w in weights.items()}
    narrow = hf.write(tmp_path / "bf16", TINY, narrow)
    assert plan(read_folder(wide), None).narrowed
    assert not plan(read_folder(narrow), None).narrowed
    wide, narrow = read(run(wide, tmp_path / "a", bits)), read(run(narrow, tmp_path / "b", bits))
    assert wide.keys() == narrow.keys()
    assert all(same(wide[name], narrow[name]) for name in wide)


def test_float16_scales_stay_float16(tmp_path):
    source = hf.write(tmp_path / "hf", TINY, hf.tensors(TINY, mx.float16))
    written = read(run(source, tmp_path / "out"))
    assert {w.dtype for name, w in written.items() if "scales" in name} == {mx.float16}


# --- other forms of the same model


def test_the_fused_spelling_gives_the_same(source, tmp_path):
    fused = hf.write(tmp_path / "hf5", TINY, hf.fused(hf.tensors(TINY), TINY), shards=2)
    expected, written = read(run(source, tmp_path / "a")), read(run(fused, tmp_path / "b"))
    assert written.keys() == expected.keys()
    assert all(same(written[name], expected[name]) for name in expected)


def test_an_mlx_folder_of_16_bits_is_a_source_too(source, tmp_path):
    expected = read(run(source, tmp_path / "a"))
    written = read(run(run(source, tmp_path / "mlx", 16), tmp_path / "b"))
    assert written.keys() == expected.keys()
    assert all(same(written[name], expected[name]) for name in expected)


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize(
    "shape", [DENSE, hf.Shape(tie_word_embeddings=True)], ids=["dense", "tied head"]
)
def test_other_shapes(tmp_path, shape, bits):
    source = hf.write(tmp_path / "hf", shape, hf.tensors(shape), shards=2)
    out = run(source, tmp_path / "out", bits)
    assert ("lm_head.weight" in read(out)) is not shape.tie_word_embeddings
    assert_same_logits(out)


def test_links_into_a_cache_are_followed(source, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for i, file in enumerate(source.iterdir()):
        (blobs / f"{i}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../blobs/{i}")
    (blobs / "t").write_bytes(b"pieces")
    (snapshot / "tokenizer.model").symlink_to("../blobs/t")
    expected, written = read(run(source, tmp_path / "a")), read(run(snapshot, tmp_path / "b"))
    assert all(same(written[name], expected[name]) for name in expected)
    assert (tmp_path / "b" / "tokenizer.model").read_bytes() == b"pieces"
    assert not (tmp_path / "b" / "tokenizer.model").is_symlink()


def test_what_is_carried_along(source, tmp_path):
    from convert.carried import PATTERNS

    folder = tmp_path / "hf"
    hf.write(folder, TINY, hf.tensors(TINY))
    names = {pattern.replace("*", "") for pattern in PATTERNS} | {"tokenizer.model.v3"}
    for name in names:
        (folder / name).write_bytes(b"\x00 " + name.encode())
    for name in ("modeling.py", "README.md", "consolidated.00.pt"):
        (folder / name).write_text("stays")
    out = run(folder, tmp_path / "out")
    for name in names:
        assert (out / name).read_bytes() == b"\x00 " + name.encode()
    ours = {"config.json", "model.safetensors", "model.safetensors.index.json"}
    assert {file.name for file in out.iterdir()} == names | ours


# --- shards


def test_shards_hold_whole_tensors_and_load(source, tmp_path, monkeypatch):
    monkeypatch.setattr("convert.pipeline.SHARD_BYTES", 1_000_000)
    out = run(source, tmp_path / "out", 8)
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert len(files) > 2
    assert files == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    whole = read(run(source, tmp_path / "whole", 8))
    written = read(out)
    assert written.keys() == whole.keys()
    assert all(same(written[name], whole[name]) for name in whole)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in written.values())
    assert index["metadata"]["total_parameters"] == sum(w.size for w in hf.tensors(TINY).values())
    assert_same_logits(out)


# --- what is refused


def test_a_quantized_source_is_refused(source, tmp_path):
    quantized = run(source, tmp_path / "q4")
    with pytest.raises(UsageError, match="quantized already"):
        read_folder(quantized)


def test_groups_that_do_not_divide_the_rows(source, tmp_path):
    shape = hf.Shape(intermediate_size=192)
    odd = read_folder(hf.write(tmp_path / "hf", shape, hf.tensors(shape)))
    with pytest.raises(UsageError, match=r"down_proj.* 192 .*128.*--group-size 64 fits"):
        plan(odd, uniform(4, 128))
    assert plan(odd, uniform(4, 64)).bits_per_weight < 5


def test_an_index_that_points_outside(source, tmp_path):
    folder = tmp_path / "hf"
    hf.write(folder, TINY, hf.tensors(TINY), shards=2)
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(ModelError, match="outside"):
        read_folder(folder)


def test_a_missing_tensor_is_named_before_anything_is_written(tmp_path):
    weights = hf.tensors(TINY)
    del weights["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    source = hf.write(tmp_path / "hf", TINY, weights)
    with pytest.raises(ModelError, match=r"layers\.1.*up_proj"):
        read_folder(source)


# --- all or nothing


def leftovers(folder: Path, *expected: str) -> set[str]:
    return {file.name for file in folder.iterdir()} - set(expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_nothing(source, tmp_path, error):
    def progress(done: int, total: int) -> None:
        assert not (tmp_path / "out").exists()
        if done > total // 2:
            raise error

    with pytest.raises(error):
        run(source, tmp_path / "out", progress=progress)
    assert not leftovers(tmp_path)


def test_nothing_stands_at_the_target_until_the_end(source, tmp_path):
    seen = []

    def progress(done: int, total: int) -> None:
        assert not (tmp_path / "out").exists()
        seen.append((done, total))

    run(source, tmp_path / "out", progress=progress)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(w.nbytes for w in hf.tensors(TINY).values())
    assert not leftovers(tmp_path, "out")


def test_a_full_disk(source, tmp_path, monkeypatch):
    import errno

    from mlx_mixtral.errors import MixtralError

    written, pwrite = 0, os.pwrite

    def full(file, data, offset):
        nonlocal written
        written += len(data)
        if written > 1_000_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(MixtralError, match="disk is full"):
        run(source, tmp_path / "out")
    assert not leftovers(tmp_path)


def test_a_folder_in_use_stays_as_it_is(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(UsageError, match="holds files"):
        run(source, out)
    assert not leftovers(tmp_path, "out")
    assert (out / "mine").read_text() == "precious"
    assert not leftovers(out, "mine")


def test_a_folder_that_appears_meanwhile_stays_as_it_is(source, tmp_path):
    from mlx_mixtral.errors import MixtralError

    out = tmp_path / "out"

    def progress(done: int, total: int) -> None:
        out.mkdir(exist_ok=True)
        (out / "mine").write_text("precious")

    with pytest.raises(MixtralError, match="cannot write"):
        run(source, out, progress=progress)
    assert not leftovers(tmp_path, "out")
    assert not leftovers(out, "mine")


def test_an_empty_folder_is_filled(source, tmp_path):
    (tmp_path / "out").mkdir()
    assert len(read(run(source, tmp_path / "out"))) > 20
    assert not leftovers(tmp_path, "out")
