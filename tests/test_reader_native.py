"""native.py: Mistral's three layouts, whole and in pieces, hold the bits that Hugging Face's does.

``golden_torch`` holds the same weights in each, by torch (see ``golden/make_torch_files.py``).
"""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import encode, random_weights, tiny_config, write_hf, write_safetensors
from formats_native import (
    cut,
    mapping,
    native,
    program,
    storage,
    tensor,
    write_archive,
    write_params,
    write_pth,
)
from hypothesis import given
from hypothesis import strategies as st

from convert.readers.native import read_native
from mlx_mixtral.config import read_config
from mlx_mixtral.errors import MixtralError, ModelError, UsageError
from mlx_mixtral.weights import open_weights

GOLDEN = Path(__file__).parent / "golden_torch"
PTH = "consolidated.00.pth"


def bits(array):
    width = {2: mx.uint16, 4: mx.uint32}[array.dtype.size]
    return array.shape, array.dtype, np.array(array.reshape(-1).view(width)).tobytes()


def same(source, folder):
    """``source`` is the Hugging Face checkpoint in ``folder``, bit for bit."""
    assert source.config == read_config(folder)
    truth = open_weights(folder, source.config)
    assert set(source.tensors) == set(truth)
    for name, want in truth.items():
        got = source.tensors[name]
        assert (got.shape, got.dtype, got.nbytes) == (want.shape, want.dtype, want.nbytes)
        for part, span in zip(got.parts, want.parts(), strict=True):
            assert part.spec is None
            assert bits(part.read()) == bits(span.read()), name


def refused(path, *words, kind=ModelError):
    """The folder is refused in one line that has all of the words."""
    with pytest.raises(kind) as error:
        read_native(path)
    message = str(error.value)
    assert message.isprintable()
    for word in words:
        assert word in message, message


@pytest.fixture
def folder(tmp_path):
    """A copy of the model as torch saved it."""
    return Path(shutil.copytree(GOLDEN / "mixtral_pth", tmp_path / "model"))


@pytest.fixture
def layers(tmp_path):
    return Path(shutil.copytree(GOLDEN / "mixtral_pt", tmp_path / "layers"))


# --- layouts


@pytest.mark.parametrize(
    ("layout", "truth", "form"),
    [
        ("mixtral_pth", "mixtral_hf", "consolidated.00.pth"),
        ("mixtral_safetensors", "mixtral_hf", "consolidated.safetensors"),
        ("mixtral_pt", "mixtral_hf", "consolidated.00.pt and on, 2 files"),
        ("mistral_pth", "mistral_hf", "consolidated.00.pth"),
    ],
)
def test_layout(layout, truth, form):
    source = read_native(GOLDEN / layout)
    same(source, GOLDEN / truth)
    assert source.form == f"Mistral's original weights, {form}"
    assert source.folder == GOLDEN / layout
    for file in (GOLDEN / layout).glob("consolidated*"):
        same(read_native(file), GOLDEN / truth)


NAMINGS = [
    "consolidated.00.pth-split{}",
    "consolidated.00.pth-split{:02}",
    "consolidated.00.pth-split{:02}.pth",
    "consolidated-split{:02}.pth",
    "mixtral-8x7b.pth.split-{}",
]


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("first", [0, 1])
def test_pieces(folder, naming, first):
    """Eleven of them, as mirrors have it; split10 follows split9."""
    size = (folder / PTH).stat().st_size
    at = [4, 7, 5000, 5001, *(int(size * share) for share in (0.3, 0.5, 0.7, 0.9)), size - 21]
    names = [naming.format(first + n) for n in range(11)]
    source = read_native(cut(folder / PTH, names, [*at, size - 1]))
    same(source, GOLDEN / "mixtral_hf")
    assert source.form.endswith(" in 11 pieces")
    assert source.files[-1].name in names
    same(read_native(folder / names[5]), GOLDEN / "mixtral_hf")


@given(at=st.lists(st.integers(0, 108_704), max_size=12))
def test_pieces_of_any_size(tmp_path_factory, at):
    folder = tmp_path_factory.mktemp("pieces")
    for file in (GOLDEN / "mixtral_pth").iterdir():
        shutil.copy(file, folder)
    source = read_native(cut(folder / PTH, [f"{PTH}-split{n}" for n in range(len(at) + 1)],
                             sorted(at)))  # fmt: skip
    truth = open_weights(GOLDEN / "mixtral_hf", source.config)
    for name, weight in source.tensors.items():
        assert bits(weight.parts[-1].read()) == bits(truth[name].parts()[-1].read())
    shutil.rmtree(folder)


@pytest.mark.parametrize("indexed", [True, False])
def test_shards(tmp_path, indexed):
    config = tiny_config()
    weights = random_weights(config)
    write_hf(tmp_path / "hf", config, weights, dtype="BF16")
    folder = write_params(tmp_path / "model", config)
    raw = {name: encode(v, "BF16") for name, v in native(weights, config).items()}
    names, shards, weight_map = sorted(raw), [], {}
    for n in range(3):
        shards.append(folder / f"consolidated-{n + 1:05}-of-00003.safetensors")
        write_safetensors(shards[n], {name: raw[name] for name in names[n::3]})
        weight_map |= dict.fromkeys(names[n::3], shards[n].name)
    if indexed:
        index = folder / "consolidated.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    source = read_native(folder)
    same(source, tmp_path / "hf")
    assert source.form.endswith("consolidated.safetensors in 3 shards")
    shards[1].unlink()
    refused(folder, "lacks consolidated-00002-of-00003.safetensors (2 of 3")
    if indexed:
        for bad in ("../a", ["../../consolidated-00001-of-00003.safetensors"], 1, None):
            index.write_text(json.dumps({"weight_map": {"a": bad}}))
            refused(folder, "index.json does not list shards")
        index.write_text("{}")
        refused(folder, "index.json does not list shards")


def test_one_form_of_several(folder):
    """The whole is taken, not its pieces; a file that is named is taken, whatever else is there."""
    data = (folder / PTH).read_bytes()
    (folder / f"{PTH}-split0").write_bytes(data[:1000])
    shutil.copy(GOLDEN / "mixtral_safetensors/consolidated.safetensors", folder)
    assert read_native(folder).form.endswith("consolidated.safetensors")
    assert read_native(folder / PTH).form.endswith(PTH)
    refused(folder / f"{PTH}-split0", "not a whole zip archive")


# --- files that are missing, or of another kind


def test_piece_missing(folder):
    names = [f"{PTH}-split{n}" for n in range(11)]
    cut(folder / PTH, names, range(10_000, 105_000, 10_000))
    for n in (0, 1, 9):
        kept = (folder / names[n]).rename(folder / "kept")
        refused(folder, f"lacks piece {n} of {PTH} (10 of 11 are there)")
        kept.rename(folder / names[n])
    (folder / names[0]).rename(folder / "kept")
    (folder / names[1]).unlink()
    refused(folder, "lacks piece 0 ")
    (folder / "kept").rename(folder / names[0])


def test_last_piece_missing(folder):
    cut(folder / PTH, [f"{PTH}-split{n}" for n in range(4)], [30_000, 60_000, 90_000])
    (folder / f"{PTH}-split3").unlink()
    refused(folder, PTH, "not a whole zip archive", f"one after {PTH}-split2")


def test_piece_cut_short(folder):
    """The message names the piece that has not the size of the others."""
    cut(folder / PTH, [f"{PTH}-split{n}" for n in range(5)], [25_000, 50_000, 75_000, 100_000])
    piece = folder / f"{PTH}-split2"
    piece.write_bytes(piece.read_bytes()[:20_000])
    refused(folder, f"({PTH}-split2 has 20,000 bytes, others 25,000)")
    (folder / f"{PTH}-split02").write_bytes(b"")
    refused(folder, "two pieces 2", f"{PTH}-split2", f"{PTH}-split02")


def test_pieces_of_no_common_size(folder):
    cut(folder / PTH, [f"{PTH}-split{n}" for n in range(4)], [10_000, 30_000, 100_000])
    (folder / f"{PTH}-split3").unlink()
    with pytest.raises(ModelError) as error:
        read_native(folder)
    assert "others" not in str(error.value)


def test_several_models(folder):
    shutil.copy(folder / PTH, folder / "another.pth")
    refused(folder, "another.pth", "name one of them", kind=UsageError)
    same(read_native(folder / "another.pth"), GOLDEN / "mixtral_hf")
    (folder / "another.pth").rename(folder / "consolidated.01.pth")
    refused(folder, "consolidated.00.pth, consolidated.01.pth", "several GPUs")
    refused(folder / PTH, "several GPUs")
    for name in (PTH, "consolidated.01.pth"):
        (folder / name).rename(folder / f"{name}-split0")
    refused(folder, "pieces of", "name one of them", kind=UsageError)


def test_layers_missing(layers):
    kept = (layers / "consolidated.00.pt").rename(layers / "kept")
    refused(layers, "lacks consolidated.00.pt (1 of 2 are there)")
    kept.rename(layers / "consolidated.00.pt")
    (layers / "consolidated.01.pt").rename(layers / "kept")
    refused(layers, "model.layers.1.", "missing")
    shutil.copy(layers / "consolidated.00.pt", layers / "consolidated.01.pt")
    refused(layers, "consolidated.01.pt: a second tensor for model.layers.0")


def test_nothing_there(tmp_path, folder):
    refused(tmp_path / "absent", "nothing at", kind=UsageError)
    (folder / PTH).unlink()
    refused(folder, "holds no consolidated.safetensors, .pth or .pt", kind=UsageError)
    (folder / PTH).symlink_to(folder / "blob")  # as in a cache, after the blob was removed
    refused(folder, "holds no", kind=UsageError)
    (folder / "consolidated.safetensors-split0").write_bytes(b"")
    refused(folder, "consolidated.safetensors is in pieces; join them")


def test_configuration(folder, layers):
    (folder / "config.json").write_text("of something else")
    same(read_native(folder), GOLDEN / "mixtral_hf")
    (folder / "config.json").unlink()
    (folder / "params.json").write_text('{"dim": 32}')
    refused(folder, "params.json: ", "missing")
    (folder / "params.json").unlink()
    refused(folder, "no params.json")
    (layers / "config.json").write_text('{"model_type": "llama"}')
    refused(layers, "config.json: the architecture is 'llama'")


def test_more_in_params(folder):
    """Later ones have more entries, and may leave the vocabulary out."""
    params = json.loads((folder / "params.json").read_text())
    params |= {"max_seq_len": 4096, "rope_theta": 5e5, "use_biases": False}
    (folder / "params.json").write_text(json.dumps(params))
    config = read_native(folder).config
    assert (config.max_position_embeddings, config.rope_theta) == (4096, 5e5)
    del params["vocab_size"]
    (folder / "params.json").write_text(json.dumps(params))
    refused(folder, "tok_embeddings.weight has shape [64, 32], the configuration asks for [32000,")


# --- tensors


def written(tmp_path, config, changes=(), dtype="BF16", stem="consolidated.00.pth"):
    """A checkpoint without torch, with some tensors changed, added or (None) taken out."""
    raw = {k: encode(v, dtype) for k, v in native(random_weights(config), config).items()}
    raw |= dict(changes)
    raw = {name: entry for name, entry in raw.items() if entry}
    folder = write_params(tmp_path / "model", config)
    write_pth(folder / stem, raw)
    return folder


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_dense_and_head_dim(tmp_path, dtype):
    config = tiny_config(num_local_experts=0, head_dim=10, intermediate_size=40)
    write_hf(tmp_path / "hf", config, dtype=dtype)
    source = read_native(written(tmp_path, config, dtype=dtype))
    truth = open_weights(tmp_path / "hf", source.config)
    for name, want in truth.items():
        assert bits(source.tensors[name].parts[0].read()) == bits(want.read()), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm.weight": None}, ["model.norm is missing"]),
        ({"layers.1.feed_forward.experts.2.w2.weight": None}, ["expert 2 of model.layers.1."]),
        ({"layers.0.attention.wq.weight": ("BF16", (64,), bytes(128))}, ["wq", "[64]"]),
        ({"layers.0.attention.wq.bias": ("BF16", (64,), bytes(128))}, ["wq.bias' has no place"]),
        ({"layers.0.attention.wq.scales": ("BF16", (64,), bytes(128))}, ["has no place"]),
        ({"layers.9.ffn_norm.weight": ("BF16", (64,), bytes(128))}, ["layers.9", "no place"]),
        ({"model.norm": ("BF16", (64,), bytes(128)), "norm.weight": None}, ["'model.norm'"]),
        ({"layers.0.feed_forward.experts.9.w1.weight": ("BF16", (64, 64), bytes(8192))}, ["no pl"]),
        ({"layers.0.block_sparse_moe.w1": ("BF16", (64, 64), bytes(8192))}, ["[64, 64]"]),
        ({"layers.0.block_sparse_moe.w1": ("BF16", (256, 64), bytes(32768))}, ["a second tensor"]),
        ({"norm.weight": ("F32", (64,), bytes(256)), "output.weight": None}, ["lm_head"]),
        ({"empty": ("BF16", (0,), b"")}, ["'empty' has no place"]),
    ],
)
def test_tensors_refused(tmp_path, changes, words):
    refused(written(tmp_path, tiny_config(), changes), *words)


def test_stack_on_end(tmp_path):
    """Experts cannot be cut out of a matrix that lies column by column."""
    config = tiny_config()
    folder = written(tmp_path, config)
    stack = tensor(storage("0", 256 * 64), [256, 64], [1, 256])
    pickled = program(mapping({"layers.0.block_sparse_moe.w1": stack}))
    write_archive(folder / PTH, pickled, {"0": bytes(2 * 256 * 64)})
    refused(folder, "layers.0.block_sparse_moe.w1", "row by row")


def test_derived_tensors_are_skipped(tmp_path):
    more = {
        "rope.freqs": ("F32", (8,), bytes(32)),
        "layers.0.attention.inv_freq": ("F32", (8,), bytes(32)),
    }
    assert read_native(written(tmp_path, tiny_config(), more)).tensors


def test_safetensors_refused(tmp_path):
    config = tiny_config()
    raw = {k: encode(v, "BF16") for k, v in native(random_weights(config), config).items()}
    folder = write_params(tmp_path / "model", config)
    file = folder / "consolidated.safetensors"
    write_safetensors(file, raw | {"a\nb": ("BF16", (0,), b"")})
    refused(folder, "'a\\nb' has no place")
    write_safetensors(file, raw | {"norm.weight": ("I32", (64,), bytes(256))})
    refused(folder, "norm.weight is mlx.core.int32, not a weight")
    file.write_bytes(file.read_bytes()[:-1])
    refused(folder, "consolidated.safetensors has")


def test_nothing_is_read_ahead(folder):
    """Weights are read when they are asked for, and a file that is gone then is one line."""
    source = read_native(folder)
    (folder / PTH).write_bytes((folder / PTH).read_bytes()[:4000])
    with pytest.raises(MixtralError, match="ended while it was read"):
        source.tensors["lm_head.weight"].parts[0].read()
    (folder / PTH).unlink()
    with pytest.raises(MixtralError, match="No such file"):
        source.tensors["lm_head.weight"].parts[0].read()


@pytest.mark.fuzz
@given(data=st.data())
def test_damaged_params(tmp_path_factory, data):
    """Whatever params.json says, it is the model or one line."""
    folder = tmp_path_factory.getbasetemp() / "params"
    if not folder.exists():
        shutil.copytree(GOLDEN / "mixtral_pth", folder)
    params = json.loads((GOLDEN / "mixtral_pth/params.json").read_text())
    key = data.draw(st.sampled_from(sorted(params)))
    scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    experts = st.dictionaries(st.sampled_from(sorted(params["moe"])), scalar)
    params[key] = data.draw(scalar | st.lists(scalar, max_size=2) | experts)
    (folder / "params.json").write_text(json.dumps(params))
    try:
        source = read_native(folder)
    except MixtralError as error:
        message = str(error)
    else:
        message = source.form
    assert message.isprintable()
