"""Conversion from end to end: the same model comes out that went in, and mlx-lm agrees."""

import errno
import hashlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import (
    fused,
    quantization,
    random_ids,
    random_weights,
    relative_difference,
    stack_experts,
    tiny_config,
    write_hf,
    write_mlx,
)

from convert.pipeline import convert
from convert.plan import Job, own_recipe, plan
from convert.readers.safetensors import read_folder
from convert.recipe import uniform
from mlx_mixtral.config import ModelConfig, read_config
from mlx_mixtral.errors import MixtralError, ModelError, UsageError
from mlx_mixtral.loading import load_model
from mlx_mixtral.weights import open_weights

# Wide enough for groups of 128.
TINY = tiny_config(vocab_size=320, hidden_size=256, intermediate_size=384, head_dim=64)
DENSE = replace(TINY, num_local_experts=0)
TIED = replace(TINY, tie_word_embeddings=True)
GOLDEN = sorted(p for p in (Path(__file__).parent / "golden").iterdir() if p.is_dir())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_hf(tmp_path_factory.mktemp("hf"), TINY, dtype="BF16", shards=3)


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


def expected(config: ModelConfig, dtype: mx.Dtype = mx.bfloat16) -> dict[str, mx.array]:
    """The checkpoint under mlx-lm's names, in 16 bits."""
    weights = random_weights(config).items()
    return stack_experts({name: mx.array(w).astype(dtype) for name, w in weights}, config)


def assert_same(written: dict[str, mx.array], wanted: dict[str, mx.array]) -> None:
    assert written.keys() == wanted.keys()
    assert [name for name in wanted if not same(written[name], wanted[name])] == []


def our_logits(folder: Path) -> mx.array:
    config = read_config(folder)
    return load_model(folder, config, mx.float32)(random_ids(config))


def mlx_lm_logits(folder: Path) -> mx.array:
    from mlx_lm.utils import load_model as load_mlx_lm

    model, _ = load_mlx_lm(folder)
    model.set_dtype(mx.float32)
    return model(random_ids(read_config(folder)))


def assert_same_logits(folder: Path) -> None:
    theirs = mlx_lm_logits(folder)
    assert mx.std(theirs) > 0.1  # the comparison means something
    assert relative_difference(our_logits(folder), theirs) <= 1e-5


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


@pytest.mark.parametrize("config", [TINY, DENSE], ids=["moe", "dense"])
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_16_bits_change_only_the_layout(tmp_path, config, dtype):
    source = write_hf(tmp_path / "hf", config, dtype=dtype)
    kind = mx.bfloat16 if dtype == "BF16" else mx.float16
    assert_same(read(run(source, tmp_path / "out", 16)), expected(config, kind))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization" not in written
    assert written["torch_dtype"] == str(kind).removeprefix("mlx.core.")


@pytest.mark.parametrize("source", GOLDEN, ids=lambda folder: folder.name)
def test_checkpoints_that_transformers_wrote(tmp_path, source):
    config = read_config(source)
    out = run(source, tmp_path / "out", 16)
    wanted = {name: tensor.read() for name, tensor in open_weights(source, config).items()}
    narrow = {n: w.astype(mx.bfloat16) if w.dtype == mx.float32 else w for n, w in wanted.items()}
    assert_same(read(out), narrow)
    assert read_config(out) == config
    if all(w.dtype != mx.float32 for w in wanted.values()):
        assert mx.array_equal(our_logits(out), our_logits(source))


def test_the_router_and_the_norms_stay_as_they_are(source, tmp_path):
    written, weights = read(run(source, tmp_path / "out", 2)), expected(TINY)
    kept = [name for name in weights if "norm" in name or ".block_sparse_moe.gate." in name]
    assert len(kept) == 3 * TINY.num_hidden_layers + 1
    assert all(same(written[name], weights[name]) for name in kept)


@pytest.mark.parametrize("bits", [16, 4])
def test_float32_becomes_bfloat16(source, tmp_path, bits):
    wide = write_hf(tmp_path / "f32", TINY, dtype="F32")
    assert plan(read_folder(wide), None).narrowed
    assert not plan(read_folder(source), None).narrowed
    assert_same(read(run(wide, tmp_path / "a", bits)), read(run(source, tmp_path / "b", bits)))


def test_float16_scales_stay_float16(tmp_path):
    written = read(run(write_hf(tmp_path / "hf", TINY, dtype="F16"), tmp_path / "out"))
    assert {w.dtype for name, w in written.items() if "scales" in name} == {mx.float16}


# --- other forms of the same model


def test_the_fused_spelling_gives_the_same(source, tmp_path):
    hf5 = write_hf(
        tmp_path / "hf5", TINY, fused(random_weights(TINY), TINY), dtype="BF16", shards=2
    )
    assert_same(read(run(hf5, tmp_path / "a")), read(run(source, tmp_path / "b")))


def test_an_mlx_folder_of_16_bits_is_a_source_too(source, tmp_path):
    mlx = run(source, tmp_path / "mlx", 16)
    assert_same(read(run(mlx, tmp_path / "a")), read(run(source, tmp_path / "b")))


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("config", [DENSE, TIED], ids=["dense", "tied head"])
def test_other_shapes(tmp_path, config, bits):
    out = run(write_hf(tmp_path / "hf", config, dtype="BF16", shards=2), tmp_path / "out", bits)
    assert ("lm_head.weight" in read(out)) is not config.tie_word_embeddings
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
    assert_same(read(run(snapshot, tmp_path / "b")), read(run(source, tmp_path / "a")))
    assert (tmp_path / "b" / "tokenizer.model").read_bytes() == b"pieces"
    assert not (tmp_path / "b" / "tokenizer.model").is_symlink()


def test_what_is_carried_along(tmp_path):
    folder = write_hf(tmp_path / "hf", TINY)
    names = {
        "LICENSE",
        "LICENSE.txt",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer.model.v3",
        "tokenizer_config.json",
    }
    for name in names:
        (folder / name).write_bytes(b"\x00 " + name.encode())
    for name in ("modeling.py", "README.md", "consolidated.00.pt"):
        (folder / name).write_text("stays")
    out = run(folder, tmp_path / "out")
    for name in names:
        assert (out / name).read_bytes() == b"\x00 " + name.encode()
    ours = {"config.json", "manifest.json", "model.safetensors", "model.safetensors.index.json"}
    assert {file.name for file in out.iterdir()} == names | ours


# --- MLX folders that are quantized already


QUANTIZED = {
    "affine": replace(TINY, quantization=quantization(4, 32)),
    "mixed": replace(
        TINY, quantization=quantization(4, **{"lm_head": 8, "model.layers.0.self_attn.v_proj": 6})
    ),
    "mxfp4": replace(TINY, quantization=quantization(4, 32, "mxfp4")),
    "nvfp4": replace(TINY, quantization=quantization(4, 16, "nvfp4")),
    "mxfp8": replace(TINY, quantization=quantization(8, 32, "mxfp8")),
}


def keep(source: Path, out: Path) -> Path:
    opened = read_folder(source)
    convert(plan(opened, own_recipe(opened)), out)
    return out


@pytest.mark.parametrize("era", ["B", "C"])
@pytest.mark.parametrize("config", QUANTIZED.values(), ids=QUANTIZED.keys())
def test_codes_stay_as_they_are(tmp_path, config, era, kept_packed):
    half = {n: np.array(mx.array(w).astype(mx.bfloat16).astype(mx.float32))
            for n, w in random_weights(config).items()}  # fmt: skip
    source = write_mlx(tmp_path / "mlx", config, half, era=era)
    out = keep(source, tmp_path / "out")
    wanted = mx.load(str(write_mlx(tmp_path / "c", config, half) / "model.safetensors"))
    wanted |= {name: w.astype(mx.bfloat16) for name, w in wanted.items() if "norm" in name}
    assert_same(read(out), wanted)
    assert mx.array_equal(our_logits(out), our_logits(source))
    assert_same_logits(out)


def test_what_was_not_quantized_stays_so(tmp_path):
    config = replace(TINY, quantization=quantization(4))
    kept = {"model.embed_tokens", "lm_head"}
    source = write_mlx(
        tmp_path / "mlx", config, quantized=lambda p: p not in kept and "norm" not in p
    )
    written = read(keep(source, tmp_path / "out"))
    assert "model.embed_tokens.scales" not in written
    assert "model.layers.0.block_sparse_moe.gate.scales" in written
    assert_same_logits(tmp_path / "out")


def test_to_fewer_bits(tmp_path):
    """As mlx-lm would: dequantized, and quantized anew; the router goes back to 16 bits."""
    source = write_mlx(tmp_path / "mlx", replace(TINY, quantization=quantization(8)))
    written = read(run(source, tmp_path / "out", 4))
    packed = mx.load(str(source / "model.safetensors"))
    name = "model.layers.1.self_attn.o_proj"
    values = mx.dequantize(*(packed[f"{name}.{k}"] for k in ("weight", "scales", "biases")), bits=8)
    wanted = mx.quantize(values.astype(mx.bfloat16), bits=4)
    for kind, array in zip(("weight", "scales", "biases"), wanted, strict=True):
        assert same(written[f"{name}.{kind}"], array)
    assert "model.layers.0.block_sparse_moe.gate.scales" not in written


def test_the_same_bits_are_not_rounded_twice(tmp_path):
    source = write_mlx(tmp_path / "mlx", replace(TINY, quantization=quantization(4)))
    again = run(source, tmp_path / "out", 4)
    name = "model.layers.1.self_attn.o_proj.weight"
    assert same(read(again)[name], mx.load(str(source / "model.safetensors"))[name])


# --- shards


def test_shards_hold_whole_tensors_and_load(source, tmp_path, monkeypatch):
    monkeypatch.setattr("convert.pipeline.SHARD_BYTES", 1_000_000)
    out = run(source, tmp_path / "out", 8)
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert len(files) > 2
    assert files == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    written = read(out)
    assert_same(written, read(run(source, tmp_path / "whole", 8)))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in written.values())
    assert index["metadata"]["total_parameters"] == sum(w.size for w in expected(TINY).values())
    assert_same_logits(out)


# --- what is refused


def test_groups_that_do_not_divide_the_rows(tmp_path):
    odd = read_folder(write_hf(tmp_path, replace(TINY, intermediate_size=192)))
    with pytest.raises(UsageError, match=r"down_proj.* 192 .*128.*--group-size 64 fits"):
        plan(odd, uniform(4, 128))
    assert plan(odd, uniform(4, 64)).bits_per_weight < 5


def test_an_index_that_points_outside(tmp_path):
    folder = write_hf(tmp_path / "hf", TINY, shards=2)
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(ModelError, match="outside"):
        read_folder(folder)


def test_a_missing_tensor_is_named_before_anything_is_written(tmp_path):
    weights = random_weights(TINY)
    del weights["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    with pytest.raises(ModelError, match=r"layers\.1.*up_proj"):
        read_folder(write_hf(tmp_path, TINY, weights))


# --- all or nothing


def leftovers(folder: Path, *expected: str) -> set[str]:
    return {file.name for file in folder.iterdir()} - set(expected)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def parts_taken(monkeypatch) -> list[str]:
    """The parts that conversions read from now on."""
    taken, original = [], Job.run

    def run(job: Job, writer) -> int:
        taken.append(f"{job.slots[0].name} {job.index}")
        return original(job, writer)

    monkeypatch.setattr(Job, "run", run)
    return taken


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_conversion_goes_on(source, tmp_path, error, monkeypatch):
    def progress(done: int, total: int) -> None:
        assert not (tmp_path / "out").exists()
        if done > total // 2:
            raise error

    taken = parts_taken(monkeypatch)
    with pytest.raises(error):
        run(source, tmp_path / "out", progress=progress)
    assert leftovers(tmp_path) == {".out.partial"}
    first = taken.copy()
    run(source, tmp_path / "out")
    assert sorted(taken) == sorted(set(taken))  # none of them twice
    assert len(first) >= len(taken) // 2
    assert not leftovers(tmp_path, "out")
    whole = run(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(whole)


def interrupted(source: Path, out: Path, **options) -> Path:
    """A conversion that stops at half; the folder where it is kept."""

    def progress(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, out, progress=progress, **options)
    return out.parent / f".{out.name}.partial"


def test_another_recipe_begins_anew(source, tmp_path, monkeypatch):
    interrupted(source, tmp_path / "out", bits=8)
    taken = parts_taken(monkeypatch)
    run(source, tmp_path / "out", bits=4)
    assert len(taken) == len(plan(read_folder(source), None).jobs)
    assert contents(tmp_path / "out") == contents(run(source, tmp_path / "whole", bits=4))


def test_nothing_of_another_recipe_stays(source, tmp_path, monkeypatch):
    monkeypatch.setattr("convert.pipeline.SHARD_BYTES", 300_000)
    interrupted(source, tmp_path / "out", bits=8)
    monkeypatch.undo()
    out = run(source, tmp_path / "out", bits=4)
    assert contents(out) == contents(run(source, tmp_path / "whole", bits=4))


def test_what_fails_before_it_begins_leaves_nothing(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(UsageError, match="not enough room"):
        run(source, tmp_path / "out")
    assert not leftovers(tmp_path)


def test_a_source_that_changed_begins_anew(source, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(source, mine)
    interrupted(mine, tmp_path / "out")
    other = write_hf(tmp_path / "hf", TINY, random_weights(TINY, seed=1), dtype="BF16", shards=3)
    for file in other.iterdir():
        file.rename(mine / file.name)
    assert contents(run(mine, tmp_path / "out")) == contents(run(mine, tmp_path / "whole"))


def test_what_was_lost_meanwhile_is_done_again(source, tmp_path, monkeypatch):
    work = interrupted(source, tmp_path / "out", bits=16)
    file = work / "files" / "model.safetensors"
    torn = bytearray(file.read_bytes())
    torn[len(torn) // 8 : len(torn) // 4] = bytes(len(torn) // 4 - len(torn) // 8)
    file.write_bytes(torn)
    (work / "journal").write_bytes((work / "journal").read_bytes()[:-5])  # half a line
    assert contents(run(source, tmp_path / "out", 16)) == contents(run(source, tmp_path / "w", 16))


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe nonsense\n", b"\n\n\n"])
def test_a_damaged_journal_begins_anew(source, tmp_path, damage):
    (interrupted(source, tmp_path / "out") / "journal").write_bytes(damage)
    assert contents(run(source, tmp_path / "out")) == contents(run(source, tmp_path / "whole"))


def test_a_disk_that_forgets_is_noticed(source, tmp_path, monkeypatch):
    pwrite = os.pwrite

    def forgetful(file, data, offset):
        return pwrite(file, bytes(data)[:-1] + b"\x5a", offset)

    monkeypatch.setattr(os, "pwrite", forgetful)
    with pytest.raises(MixtralError, match="does not read as it was written"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_at_once(source, tmp_path):
    def progress(done: int, total: int) -> None:
        with pytest.raises(MixtralError, match="another mixtral-mlx is writing"):
            run(source, tmp_path / "out")

    run(source, tmp_path / "out", progress=progress)
    assert not leftovers(tmp_path, "out")


def test_the_manifest_lists_every_file(source, tmp_path):
    out = run(source, tmp_path / "out", origin="somewhere")
    listed = json.loads((out / "manifest.json").read_text())
    assert listed["source"] == "somewhere"
    assert listed["files"].keys() == {file.name for file in out.iterdir()} - {"manifest.json"}
    for name, entry in listed["files"].items():
        data = (out / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_ctrl_c_does_not_wait_for_the_rest(source, tmp_path):
    calls = []

    def progress(done: int, total: int) -> None:
        if done:
            calls.append(done)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", progress=progress)
    assert len(calls) == 1
    assert leftovers(tmp_path) == {".out.partial"}


def test_nothing_stands_at_the_target_until_the_end(source, tmp_path):
    seen = []

    def progress(done: int, total: int) -> None:
        assert not (tmp_path / "out").exists()
        seen.append((done, total))

    run(source, tmp_path / "out", progress=progress)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(w.nbytes for w in expected(TINY).values())
    assert not leftovers(tmp_path, "out")


def test_a_full_disk(source, tmp_path, monkeypatch):
    written, pwrite = 0, os.pwrite

    def full(file, data, offset):
        nonlocal written
        written += len(data)
        if written > 1_000_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(MixtralError, match=r"disk is full.*same command again"):
        run(source, tmp_path / "out")
    monkeypatch.undo()
    assert contents(run(source, tmp_path / "out")) == contents(run(source, tmp_path / "whole"))


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
    out = tmp_path / "out"

    def progress(done: int, total: int) -> None:
        out.mkdir(exist_ok=True)
        (out / "mine").write_text("precious")

    with pytest.raises(UsageError, match="holds files"):
        run(source, out, progress=progress)
    assert leftovers(tmp_path, "out") == {".out.partial"}
    assert not leftovers(out, "mine")


def test_an_empty_folder_is_filled(source, tmp_path):
    (tmp_path / "out").mkdir()
    assert len(read(run(source, tmp_path / "out"))) > 20
    assert not leftovers(tmp_path, "out")
