"""weights.py: every layout gives the same tensors; every damage is one line that names it."""

import json
import os
import re
import shutil

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import (
    encode,
    quantization,
    random_weights,
    safetensors_bytes,
    stack_experts,
    tiny_config,
    with_header,
    write_hf,
    write_index,
    write_mlx,
    write_safetensors,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_mixtral.config import read_config
from mlx_mixtral.errors import ModelError
from mlx_mixtral.shards import read_header
from mlx_mixtral.weights import open_weights, packed_shapes

FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
CONFIG = tiny_config(hidden_size=32, intermediate_size=32, head_dim=8, num_hidden_layers=1)
QUANTIZED = tiny_config(num_hidden_layers=1, quantization=quantization(4))
SWITCH = "model.layers.0.block_sparse_moe.switch_mlp"
EXPERT = "model.layers.0.block_sparse_moe.experts"


@pytest.fixture(scope="module")
def weights():
    return random_weights(CONFIG)


@pytest.fixture(scope="module")
def canonical(weights):
    return stack_experts({k: mx.array(v) for k, v in weights.items()}, CONFIG)


def refused(folder, *words, config=CONFIG):
    """open_weights refuses the folder in one line that has all of the words."""
    with pytest.raises(ModelError) as error:
        open_weights(folder, config)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# --- layouts


def test_every_layout_reads_the_same(tmp_path, weights, canonical):
    folders = [
        write_hf(tmp_path / "hf", CONFIG, weights),
        write_hf(tmp_path / "shards", CONFIG, weights, shards=5),
        write_mlx(tmp_path / "era_c", CONFIG, weights),
        write_mlx(tmp_path / "era_b", CONFIG, weights, era="B"),
        write_fused(tmp_path / "fused", canonical),
    ]
    for folder in folders:
        tensors = open_weights(folder, CONFIG)
        assert set(tensors) == set(canonical)
        for name, want in canonical.items():
            got = tensors[name]
            assert (got.shape, got.dtype) == (want.shape, mx.float32)
            assert got.nbytes == want.nbytes
            assert mx.array_equal(got.read(), want), f"{folder.name}: {name}"


def write_fused(folder, canonical):
    """transformers 5 with save_original_format=False."""
    out = {}
    for name, values in canonical.items():
        if ".switch_mlp." not in name:
            out[name.replace("block_sparse_moe.gate", "mlp.gate")] = encode(np.array(values))
    gate, up, down = (
        np.array(canonical[f"{SWITCH}.{p}_proj.weight"]) for p in ("gate", "up", "down")
    )
    out["model.layers.0.mlp.experts.gate_up_proj"] = encode(np.concatenate([gate, up], axis=1))
    out["model.layers.0.mlp.experts.down_proj"] = encode(down)
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", out)
    return folder


@pytest.mark.parametrize("layout", ["hf", "era_c", "fused"])
def test_experts_one_by_one_are_the_stack(layout, tmp_path, weights, canonical):
    folder = tmp_path / layout
    if layout == "fused":
        write_fused(folder, canonical)
    else:
        write_hf(folder, CONFIG, weights) if layout == "hf" else write_mlx(folder, CONFIG, weights)
    tensors = open_weights(folder, CONFIG)
    for projection in ("gate_proj", "up_proj", "down_proj"):
        name = f"{SWITCH}.{projection}.weight"
        parts = tensors[name].parts()
        assert [p.shape for p in parts] == [canonical[name].shape[1:]] * 4
        assert mx.array_equal(mx.stack([p.read() for p in parts]), canonical[name])
    (only,) = tensors["model.norm.weight"].parts()
    assert mx.array_equal(only.read(), canonical["model.norm.weight"])


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_16_bit_values_survive_whole_and_in_parts(dtype, tmp_path, weights):
    folder = write_hf(tmp_path, CONFIG, weights, dtype=dtype)
    kind = {"BF16": mx.bfloat16, "F16": mx.float16}[dtype]
    tensor = open_weights(folder, CONFIG)[f"{SWITCH}.up_proj.weight"]
    want = mx.stack([mx.array(weights[f"{EXPERT}.{e}.w3.weight"]).astype(kind) for e in range(4)])
    assert tensor.dtype == kind
    assert mx.array_equal(tensor.read(), want)
    span = tensor.spans[0]
    rows = [span.part(i * 32, (1, 32)).read() for i in range(32)]
    assert mx.array_equal(mx.concatenate(rows), want[0])


@pytest.mark.parametrize("era", ["B", "C"])
def test_quantized_folders_of_both_eras(era, tmp_path):
    folder = write_mlx(tmp_path, QUANTIZED, era=era)
    tensors = open_weights(folder, QUANTIZED)
    assert tensors[f"{SWITCH}.gate_proj.weight"].dtype == mx.uint32
    assert tensors[f"{SWITCH}.gate_proj.weight"].shape == (4, 64, 8)
    assert tensors[f"{SWITCH}.gate_proj.scales"].shape == (4, 64, 1)
    assert tensors[f"{SWITCH}.gate_proj.biases"].shape == (4, 64, 1)


def test_tied_head_and_derived_frequencies_are_passed_over(tmp_path, weights):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    config = tiny_config(**(vars(CONFIG) | {"tie_word_embeddings": True}))
    tensors = open_weights(write_hf(tmp_path, config, weights | extra), config)
    assert "lm_head.weight" not in tensors
    assert not any("inv_freq" in name for name in tensors)


def test_symlinked_shards_as_in_a_hub_cache(tmp_path, weights, canonical):
    real = write_hf(tmp_path / "real", CONFIG, weights, shards=3)
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for i, file in enumerate(sorted(real.iterdir())):
        shutil.move(file, blobs / f"{i:064}")
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / f"{i:064}", snapshot))
    tensors = open_weights(snapshot, read_config(snapshot))
    for name, want in canonical.items():
        assert mx.array_equal(tensors[name].read(), want)


def test_reading_is_lazy(tmp_path, weights):
    """Only headers are read: a file whose data is a hole opens at once."""
    folder = write_hf(tmp_path, CONFIG, weights)
    file = folder / "model.safetensors"
    size, length = file.stat().st_size, int.from_bytes(file.read_bytes()[:8], "little")
    os.truncate(file, 8 + length)
    os.truncate(file, size)
    tensors = open_weights(folder, CONFIG)
    assert mx.array_equal(tensors["model.norm.weight"].read(), mx.zeros(32))


# --- missing, unknown, twice


def test_no_weights_at_all(tmp_path):
    refused(tmp_path, str(tmp_path), "no safetensors")


@pytest.mark.parametrize("name", ["consolidated.00.pth", "model.Q4_K_M.gguf", "weights.00.npz"])
def test_weights_of_another_format_are_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path, name, "converted")


def test_missing_shard(tmp_path, weights):
    folder = write_hf(tmp_path, CONFIG, weights, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, "model-00002-of-00003.safetensors", "2 of 3")


def test_missing_tensor(tmp_path, weights):
    gone = "model.layers.0.self_attn.k_proj.weight"
    refused(write_hf(tmp_path, CONFIG, {k: v for k, v in weights.items() if k != gone}), gone)


@pytest.mark.parametrize("expert", [0, 2, 3])
def test_missing_expert(expert, tmp_path, weights):
    gone = f"{EXPERT}.{expert}.w2.weight"
    folder = write_hf(tmp_path, CONFIG, {k: v for k, v in weights.items() if k != gone})
    refused(folder, f"expert {expert}", f"{SWITCH}.down_proj.weight")


def test_one_expert_too_many(tmp_path, weights):
    extra = {f"{EXPERT}.4.w2.weight": weights[f"{EXPERT}.0.w2.weight"]}
    refused(write_hf(tmp_path, CONFIG, weights | extra), "down_proj", "5 experts", "4")


def test_a_whole_layer_too_many(tmp_path, weights):
    deeper = random_weights(tiny_config(**(vars(CONFIG) | {"num_hidden_layers": 2})))
    refused(write_hf(tmp_path, CONFIG, deeper), "model.layers.1.", "more")


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "visual.blocks.0.weight", "lm_head.scales", ""]
)
def test_unknown_tensor(name, tmp_path, weights):
    refused(
        write_hf(tmp_path, CONFIG, weights | {name: np.ones(32, np.float32)}),
        "lm_head" if "lm_head" in name else name,
    )


def test_a_dense_checkpoint_under_a_moe_config_and_the_reverse(tmp_path, weights):
    dense = tiny_config(**(vars(CONFIG) | {"num_local_experts": 0}))
    refused(write_hf(tmp_path / "a", CONFIG, random_weights(dense)), "block_sparse_moe")
    refused(write_hf(tmp_path / "b", dense, weights), "mlp.gate_proj", config=dense)


def test_a_tensor_in_two_shards(tmp_path, weights):
    folder = write_hf(tmp_path, CONFIG, weights, shards=2)
    second = folder / "model-00002-of-00002.safetensors"
    spans = {n: encode(weights[n]) for n in [*read_header(second), "model.norm.weight"]}
    if "model.norm.weight" in read_header(second):
        spans["lm_head.weight"] = encode(weights["lm_head.weight"])
    write_safetensors(second, spans)
    refused(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_the_same_tensor_under_two_names(tmp_path, weights, canonical):
    stack = {f"{SWITCH}.up_proj.weight": np.array(canonical[f"{SWITCH}.up_proj.weight"])}
    refused(write_hf(tmp_path / "a", CONFIG, weights | stack), f"{SWITCH}.up_proj.weight")
    gate = {
        "model.layers.0.mlp.gate.weight": weights["model.layers.0.block_sparse_moe.gate.weight"]
    }
    refused(write_hf(tmp_path / "b", CONFIG, weights | gate), "block_sparse_moe.gate.weight")
    zero = {f"{EXPERT}.00.w1.weight": weights[f"{EXPERT}.0.w1.weight"]}
    refused(write_hf(tmp_path / "c", CONFIG, weights | zero), "gate_proj.weight")


def test_an_expert_number_of_many_digits(tmp_path, weights):
    extra = {f"{EXPERT}.{'9' * 5000}.w1.weight": np.ones(1, np.float32)}
    refused(write_hf(tmp_path, CONFIG, weights | extra), "model.safetensors")


# --- shapes and dtypes


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", f"{EXPERT}.1.w1.weight"])
def test_wrong_shape(name, tmp_path, weights):
    wrong = {name: weights[name][:-1]}
    known = name if EXPERT not in name else f"{SWITCH}.gate_proj.weight"
    refused(
        write_hf(tmp_path, CONFIG, weights | wrong),
        "model.safetensors",
        known,
        "31" if "lm" not in name else "95",
    )


def test_transposed_is_a_wrong_shape(tmp_path, weights):
    config = tiny_config(**(vars(CONFIG) | {"intermediate_size": 16}))
    refused(write_hf(tmp_path, CONFIG, random_weights(config)), "switch_mlp", "16", "32")


@pytest.mark.parametrize("shape", [(4, 65, 32), (8, 32), (4, 2, 32, 32)])
def test_fused_experts_of_a_wrong_shape(shape, tmp_path, canonical):
    folder = write_fused(tmp_path / "fused", canonical)
    file = folder / "model.safetensors"
    tensors = {n: encode(np.zeros(s.shape)) for n, s in read_header(file).items()}
    tensors["model.layers.0.mlp.experts.gate_up_proj"] = encode(np.zeros(shape))
    write_safetensors(file, tensors)
    refused(folder, "model.safetensors", "gate_")


@pytest.mark.parametrize("dtype", ["I32", "F64", "U32"])
@pytest.mark.parametrize("name", ["model.norm.weight", f"{EXPERT}.3.w2.weight"])
def test_wrong_dtype(dtype, name, tmp_path, weights):
    tensors = {n: encode(v, dtype if n == name else "F32") for n, v in weights.items()}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    known = name if dtype == "F64" or EXPERT not in name else f"{SWITCH}.down_proj.weight"
    refused(tmp_path, "model.safetensors", known)


def test_quantized_without_a_word_in_the_config(tmp_path):
    folder = write_mlx(tmp_path, QUANTIZED)
    plain = tiny_config(num_hidden_layers=1)
    refused(folder, "model.embed_tokens", "config.json", config=plain)


@pytest.mark.parametrize("said", [quantization(8), quantization(4, 32), quantization(4, 128)])
def test_quantized_otherwise_than_the_config_says(said, tmp_path):
    folder = write_mlx(tmp_path, QUANTIZED)
    other = tiny_config(num_hidden_layers=1, quantization=said)
    refused(folder, "model.embed_tokens", "config.json", config=other)


def test_an_override_that_disagrees_with_the_file(tmp_path):
    folder = write_mlx(tmp_path, QUANTIZED)
    for bits in (8, None):
        said = quantization(4, **{"model.layers.0.self_attn.q_proj": bits})
        other = tiny_config(num_hidden_layers=1, quantization=said)
        refused(folder, "model.layers.0.self_attn.q_proj", config=other)


def test_scales_without_biases_and_scales_of_a_wrong_kind(tmp_path):
    folder = write_mlx(tmp_path, QUANTIZED)
    file = folder / "model.safetensors"
    tensors = dict(mx.load(str(file)).items())
    biases = tensors.pop("lm_head.biases")
    mx.save_safetensors(str(file), tensors)
    refused(folder, "lm_head.biases", config=QUANTIZED)
    mx.save_safetensors(str(file), tensors | {"lm_head.biases": biases.astype(mx.uint8)})
    refused(folder, "lm_head.biases", "uint8", config=QUANTIZED)
    uint8 = tensors["lm_head.scales"].astype(mx.uint8)
    mx.save_safetensors(str(file), tensors | {"lm_head.biases": biases, "lm_head.scales": uint8})
    refused(folder, "lm_head.scales", "uint8", config=QUANTIZED)


def test_a_width_that_the_group_does_not_divide(tmp_path):
    """MLX cannot multiply such a matrix; its packed shapes rounded down must not pass."""
    config = tiny_config(
        num_hidden_layers=1, hidden_size=80, num_local_experts=0, quantization=quantization(4)
    )
    plain = random_weights(config)
    spec = config.quantization.default
    tensors = {name: encode(values) for name, values in plain.items()}
    del tensors["lm_head.weight"]
    for kind, shape in packed_shapes((96, 80), spec).items():
        tensors[f"lm_head.{kind}"] = encode(np.ones(shape), "U32" if kind == "weight" else "F32")
    write_safetensors(tmp_path / "model.safetensors", tensors)
    refused(tmp_path, "lm_head", "64", config=config)


def test_a_norm_is_never_quantized(tmp_path):
    """There is no quantized norm to load it into: as codes it would be silently wrong."""
    folder = write_mlx(tmp_path, QUANTIZED)
    file = folder / "model.safetensors"
    tensors = dict(mx.load(str(file)).items())
    codes, scales, biases = mx.quantize(mx.ones((1, 64)), 64, 4)
    forged = {"weight": codes[0], "scales": scales[0], "biases": biases[0]}
    mx.save_safetensors(str(file), tensors | {f"model.norm.{k}": v for k, v in forged.items()})
    refused(folder, "model.norm", config=QUANTIZED)


# --- the index


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "a/model.safetensors", "..", ".", ""]
)
def test_an_index_may_not_leave_its_folder(shard, tmp_path, weights):
    folder = write_hf(tmp_path / "inner", CONFIG, weights)
    shutil.copy(folder / "model.safetensors", tmp_path)
    write_index(folder, dict.fromkeys(weights, shard))
    refused(folder, "model.safetensors.index.json")


def test_an_index_that_promises_what_the_shard_lacks(tmp_path, weights):
    folder = write_hf(tmp_path, CONFIG, weights)
    write_index(folder, dict.fromkeys([*weights, "model.extra"], "model.safetensors"))
    refused(folder, "model.safetensors", "model.extra")


def test_an_index_that_names_the_wrong_shard(tmp_path, weights):
    folder = write_hf(tmp_path, CONFIG, weights, shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    index["model.norm.weight"] = next(f for f in index.values() if f != index["model.norm.weight"])
    write_index(folder, index)
    refused(folder, "model.norm.weight")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index(text, tmp_path, weights):
    folder = write_hf(tmp_path, CONFIG, weights)
    (folder / "model.safetensors.index.json").write_text(text)
    refused(folder, "model.safetensors.index.json")


def test_a_shard_that_is_a_folder(tmp_path, weights):
    folder = write_hf(tmp_path, CONFIG, weights)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    refused(folder, "model.safetensors")


# --- damaged files


def test_truncated_anywhere(tmp_path, weights):
    folder = write_hf(tmp_path, CONFIG, weights)
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for cut in (
        0,
        1,
        7,
        8,
        9,
        8 + length // 2,
        8 + length - 1,
        8 + length,
        9 + length,
        len(data) - 1,
    ):
        file.write_bytes(data[:cut])
        refused(folder, "model.safetensors", "fetch it again")


def test_trailing_bytes(tmp_path, weights):
    folder = write_hf(tmp_path, CONFIG, weights)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    refused(folder, "model.safetensors", "bytes")


def test_a_file_that_shrinks_after_it_was_opened(tmp_path, canonical):
    folder = write_fused(tmp_path / "fused", canonical)
    tensors = open_weights(folder, CONFIG)
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size // 4)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        tensors[f"{SWITCH}.up_proj.weight"].read()


def entry(begin=0, end=8, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry(), "b": entry()}, "b does not begin"),  # the same bytes twice
        ({"a": entry(), "b": entry(4, 12)}, "b does not begin"),  # overlap
        ({"a": entry(), "b": entry(12, 20)}, "b does not begin"),  # gap
        ({"a": entry(4, 12)}, "a does not begin"),
        ({"a": entry(0, 24, shape=(6,))}, "promises"),  # beyond the end
        ({"a": entry(-8, 0)}, "a is damaged"),
        ({"a": entry(8, 0)}, "a "),
        ({"a": entry(0, 1 << 62, shape=(1 << 60,))}, "a is damaged"),
        ({"a": entry(0, 1 << 58, shape=(1 << 56,))}, "promises"),
        ({"a": entry(shape=(1 << 40, 1 << 40))}, "a has 8 bytes"),
        ({"a": entry(shape=(-2,))}, "a is damaged"),
        ({"a": entry(shape=(2.0,))}, "a is damaged"),
        ({"a": entry(shape=(True, 2))}, "a is damaged"),
        ({"a": entry(shape="2")}, "a is damaged"),
        ({"a": entry(shape=None)}, "a is damaged"),
        ({"a": entry(shape=(3,))}, "a has 8 bytes"),
        ({"a": entry(dtype="F64")}, "F64"),
        ({"a": entry(dtype="f32")}, "f32"),
        ({"a": entry(dtype=None)}, "a "),
        ({"a": entry(dtype=["F32"])}, "a "),
        ({"a": entry(dtype={})}, "a "),
        ({"a": {"dtype": "F32", "shape": [2]}}, "a is damaged"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, "a is damaged"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": "08"}}, "a is damaged"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": 8}}, "a is damaged"),
        ({"a": 5}, "a is damaged"),
        ({"a": None}, "a is damaged"),
        ([1], "not a safetensors file"),
        (b"null", "not a safetensors file"),
        (b"", "not a safetensors file"),
        (b"{", "not a safetensors file"),
        (b"\xff" * 20, "not a safetensors file"),
        (b"[" * 200_000, "not a safetensors file"),
        (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}", "not a safetensors file"),
    ],
)
def test_a_lying_header(header, words, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(with_header(header, bytes(16) if "begin" in words else bytes(8)))
    with pytest.raises(ModelError, match=re.escape(words)) as error:
        read_header(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 1 << 40, 100])
def test_a_header_length_beyond_the_file(length, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match="promises"):
        read_header(file)


def test_a_header_length_as_long_as_a_huge_file(tmp_path):
    """safetensors allows 100 MB of header; more must not be read into memory."""
    file = tmp_path / "model.safetensors"
    file.write_bytes((1 << 40).to_bytes(8, "little"))
    os.truncate(file, (1 << 40) + 8)  # a hole: no disk is used
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        read_header(file)


def test_an_empty_tensor_is_no_damage(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(with_header({"b": entry(), "a": entry(0, 0, shape=(0, 4))}, bytes(8)))
    assert read_header(file)["a"].shape == (0, 4)


def test_a_header_padded_with_spaces_and_with_metadata(tmp_path):
    file = tmp_path / "model.safetensors"
    text = json.dumps({"__metadata__": {"format": "mlx"}, "a": entry()}).encode() + b"     "
    file.write_bytes(with_header(text, bytes(8)))
    assert set(read_header(file)) == {"a"}


HONEST = safetensors_bytes({n: encode(np.arange(4)) for n in ("one", "two")}, metadata={"a": "b"})


@FUZZ
@given(st.data())
def test_mutated_bytes_are_read_or_refused(tmp_path_factory, data):
    length = len(HONEST) - 32
    flips = data.draw(st.lists(st.tuples(st.integers(0, length), st.integers(0, 255)), max_size=4))
    cut = data.draw(st.none() | st.integers(0, len(HONEST)))
    mutated = bytearray(HONEST)
    for at, value in flips:
        mutated[at] = value
    attempt(tmp_path_factory, bytes(mutated[:cut]))


ODD = st.sampled_from([None, -1, 0, 1, 16, 1 << 59, 1 << 70, 1.5, "", "F32", "BF16", [], [0, 16],
                       [16, 32], [4], [-4], {}, True])  # fmt: skip
ENTRY = st.fixed_dictionaries({}, optional=dict.fromkeys(("dtype", "shape", "data_offsets"), ODD))


@FUZZ
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "\ud800"]), ODD | ENTRY))
def test_any_header_is_read_or_refused(tmp_path_factory, header):
    attempt(tmp_path_factory, with_header(header, bytes(32)))


def attempt(factory, data):
    file = factory.getbasetemp() / "fuzzed.safetensors"
    file.write_bytes(data)
    try:
        for span in read_header(file).values():
            assert span.offset + span.nbytes <= len(data)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017
