"""npz.py: MLX's folders of December 2023, as its converter wrote them then with numpy."""

import json
import shutil
import zipfile
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import random_weights, tiny_config, write_hf
from formats_native import native, write_params
from hypothesis import given
from hypothesis import strategies as st

from convert.readers.npz import read_npz
from mlx_mixtral.config import QuantSpec
from mlx_mixtral.errors import MixtralError, ModelError, UsageError
from mlx_mixtral.weights import open_weights

CONFIG = tiny_config(intermediate_size=96)
DENSE = tiny_config(num_local_experts=0)
SETTINGS = {"group_size": 32, "bits": 4}
HALF = {"model_type": "mixtral"}
CODES = {"model_type": "mixtral", "quantization": SETTINGS}
W1 = "layers.0.feed_forward.experts.0.w1"
WQ = "layers.1.attention.wq"


def halves(config):
    """Mistral's tensors in float16; the experts' w2 in Fortran's order, as transposing gave it."""
    out = {}
    for name, values in native(random_weights(config), config).items():
        values = values.astype(np.float16)
        upright = ".experts." in name and ".w2." in name
        out[name] = np.asfortranarray(values) if upright else values
    return out


def quantized(arrays, also_router=False, group_size=32, bits=4):
    """Every matrix but the embeddings and the router in codes, with MLX's own quantization."""
    out = {}
    for name, values in arrays.items():
        stem = name.removesuffix(".weight")
        if values.ndim == 1 or stem == "tok_embeddings" or (".gate" in stem and not also_router):
            out[name] = values
            continue
        parts = mx.quantize(mx.array(np.ascontiguousarray(values)), group_size, bits)
        for kind, part in zip(("weight", "scales", "biases"), parts, strict=True):
            out[f"{stem}.{kind}"] = np.array(part)
    return out


def written(folder, config, arrays, settings, files=1):
    """Arrays in weights.npz, or one after the other in weights.0.npz and on."""
    write_params(folder, config, "config.json", **settings)
    names = list(arrays)
    for n in range(files):
        name = "weights.npz" if files == 1 else f"weights.{n}.npz"
        np.savez(folder / name, **{key: arrays[key] for key in names[n::files]})
    return folder


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """The same weights in Hugging Face's layout, in float16."""
    folders = {}
    for name, config in (("moe", CONFIG), ("dense", DENSE)):
        folder = write_hf(tmp_path_factory.mktemp(name), config, dtype="F16")
        folders[name] = open_weights(folder, config)
    return folders


@pytest.fixture
def codes(tmp_path):
    return written(tmp_path / "model", CONFIG, quantized(halves(CONFIG)), CODES, files=3)


def refused(folder, *words, kind=ModelError):
    with pytest.raises(kind) as error:
        read_npz(folder)
    message = str(error.value)
    assert message.isprintable()
    for word in words:
        assert word in message, message


def same(source, truth):
    assert set(source.tensors) == set(truth)
    for name, want in truth.items():
        got = source.tensors[name]
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        for part, span in zip(got.parts, want.parts(), strict=True):
            assert part.shape == span.shape
            assert mx.array_equal(part.read(), span.read()), name


# --- layouts


@pytest.mark.parametrize("files", [1, 12])
@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_float16(tmp_path, truth, kind, files):
    """weights.10.npz follows weights.9.npz."""
    config, model_type = (CONFIG, "mixtral") if kind == "moe" else (DENSE, "mistral")
    settings = {"model_type": model_type}
    source = read_npz(written(tmp_path, config, halves(config), settings, files))
    same(source, truth[kind])
    assert source.form == "MLX arrays of December 2023 (npz)"
    assert source.config == config
    assert len(source.files) == files
    assert all(part.spec is None for tensor in source.tensors.values() for part in tensor.parts)


def test_params_json_alone(tmp_path, truth):
    """As of the first days, when the converter wrote no config.json."""
    folder = written(tmp_path, CONFIG, halves(CONFIG), {})
    (folder / "config.json").rename(folder / "params.json")
    same(read_npz(folder), truth["moe"])


@pytest.mark.parametrize("dtype", [mx.float16, mx.float32, mx.bfloat16])
def test_written_by_mlx(tmp_path, truth, dtype):
    arrays = {name: mx.array(np.ascontiguousarray(v)) for name, v in halves(CONFIG).items()}
    arrays[f"{W1}.weight"] = mx.array(np.ascontiguousarray(halves(CONFIG)[f"{W1}.weight"].T)).T
    write_params(tmp_path, CONFIG, "config.json", **HALF)
    mx.savez(str(tmp_path / "weights.npz"), **{k: v.astype(dtype) for k, v in arrays.items()})
    source = read_npz(tmp_path)
    for name, want in truth["moe"].items():
        for part, span in zip(source.tensors[name].parts, want.parts(), strict=True):
            assert part.dtype == dtype
            assert mx.array_equal(part.read(), span.read().astype(dtype)), name


@pytest.mark.parametrize("also_router", [False, True])
@pytest.mark.parametrize(("group_size", "bits"), [(32, 4), (32, 2), (32, 8), (64, 4), (32, 3)])
def test_codes(tmp_path, truth, group_size, bits, also_router):
    """The codes are those of the same matrix in Hugging Face's order: rows only move."""
    config = CONFIG if group_size == 32 else tiny_config()
    arrays = quantized(halves(config), also_router, group_size, bits)
    settings = {"model_type": "mixtral", "quantization": {"group_size": group_size, "bits": bits}}
    source = read_npz(written(tmp_path / "model", config, arrays, settings, files=2))
    assert source.form.endswith(f", {bits} bits in groups of {group_size}")
    assert source.config == config
    write_hf(tmp_path / "hf", config, dtype="F16")
    for name, want in open_weights(tmp_path / "hf", config).items():
        tensor = source.tensors[name]
        plain = "norm" in name or "embed" in name or (".gate." in name and not also_router)
        assert tensor.spec == (None if plain else QuantSpec(bits, group_size))
        assert tensor.exact != plain
        for part, span in zip(tensor.parts, want.parts(), strict=True):
            assert (part.shape, part.dtype) == (span.shape, mx.float16)
            if plain:
                assert mx.array_equal(part.read(), span.read())
                continue
            wanted = mx.quantize(span.read(), group_size, bits)
            for ours, theirs in zip(part.codes(), wanted, strict=True):
                assert ours.dtype == theirs.dtype
                assert mx.array_equal(ours, theirs), name
            assert mx.array_equal(part.read(), mx.dequantize(*wanted, group_size, bits))


# --- what is missing or wrong


def test_files_missing(codes, tmp_path):
    (codes / "weights.1.npz").unlink()
    refused(codes, "lacks weights.1.npz")
    halved = written(tmp_path / "half", CONFIG, halves(CONFIG), HALF, files=2)
    (halved / "weights.1.npz").unlink()
    refused(halved, "is missing")
    (halved / "weights.0.npz").unlink()
    refused(halved, "no weights.npz", kind=UsageError)
    refused(tmp_path / "absent", "params.json")


def test_name_twice(codes):
    shutil.copy(codes / "weights.0.npz", codes / "weights.3.npz")
    refused(codes, "tok_embeddings.weight' is in weights.0.npz and weights.3.npz")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ["is quantized, but the configuration does not say how"]),
        ({"quantization": None}, ["does not say how"]),
        ({"quantization": {"bits": 4}}, ["config.json", "group_size"]),
        ({"quantization": {"bits": 9, "group_size": 32}}, ["config.json", "bits"]),
        ({"quantization": {"bits": 4, "group_size": [32]}}, ["config.json"]),
        ({"quantization": {"bits": 8, "group_size": 32}}, ["is not 8 bits in groups of 32"]),
        ({"quantization": {"bits": 3, "group_size": 32}}, ["is not 3 bits in groups of 32"]),
        ({"quantization": {"bits": 4, "group_size": 64}}, ["is not 4 bits in groups of 64"]),
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, ["mxfp4"]),
        ({"model_type": "llama", "quantization": SETTINGS}, ["'llama'"]),
        ({"dim": None}, ["config.json: dim is missing"]),
    ],
)
def test_settings_refused(codes, settings, words):
    write_params(codes, CONFIG, "config.json", **settings)
    refused(codes, *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{WQ}.scales": None}, [WQ, "has no scales"]),
        ({f"{WQ}.biases": None}, [WQ, "has no biases"]),
        ({f"{WQ}.weight": None}, [WQ, "has no weight beside it"]),
        ({f"{WQ}.weight": np.zeros((64, 8), np.float16)}, [WQ, "is not 4 bits"]),
        ({f"{WQ}.scales": np.zeros((64, 2), np.uint32)}, [WQ, "is not 4 bits"]),
        ({f"{WQ}.scales": np.zeros((64, 3), np.float16)}, [WQ, "is not 4 bits"]),
        ({f"{WQ}.scales": np.zeros((2, 64), np.float16).T}, [WQ, "is not 4 bits"]),
        ({f"{WQ}.weight": np.zeros((64, 9), np.uint32)}, [WQ, "is not 4 bits"]),
        ({f"{WQ}.weight": np.zeros((8, 64), np.uint32).T}, [WQ, "is not 4 bits"]),
        ({f"{WQ}.weight": np.zeros(8, np.uint32)}, [WQ, "is not 4 bits"]),
        ({f"{WQ}.weight": np.zeros((2, 64, 8), np.uint32)}, [WQ, "is not 4 bits"]),
        ({f"{WQ}.weight": np.uint32(1)}, [WQ, "is not 4 bits"]),
        ({f"{W1}.weight": None, f"{W1}.scales": None, f"{W1}.biases": None}, ["expert 0", "miss"]),
        ({"norm.weight": np.zeros(64, np.uint32)}, ["norm.weight is mlx.core.uint32"]),
        ({"norm.weight": np.zeros(63, np.float16)}, ["norm.weight has shape [63]"]),
        ({"norm.weight": np.zeros(64)}, ["'<f8'"]),
        ({"norm.weight": np.zeros(64, ">f2")}, ["'>f2'"]),
        ({"norm.weight": np.zeros(64, "f2,f2")}, ["not an array that"]),
        ({"norm.weight": np.array([{}], object)}, ["'|O'"]),
        ({"norm.weight": np.zeros((2, 3, 4), np.float16, order="F")}, ["Fortran"]),
        (
            {"norm.weight": np.zeros((1, 1, 1, 1, 1), np.float16)},
            ["norm.weight has shape [1, 1, 1, 1, 1]"],
        ),
        ({"a\nb": np.zeros(1, np.float16)}, ["'a\\nb' has no place"]),
        ({"empty": np.zeros(0, np.float16)}, ["'empty' has no place"]),
    ],
)
def test_arrays_refused(tmp_path, changes, words):
    arrays = quantized(halves(CONFIG)) | changes
    arrays = {name: values for name, values in arrays.items() if values is not None}
    refused(written(tmp_path, CONFIG, arrays, CODES), *words)


def header(text, version=b"\1\0", length=None):
    width = 2 if version[0] == 1 else 4
    data = text.encode()
    return b"\x93NUMPY" + version + (length or len(data)).to_bytes(width, "little") + data


GOOD = "{'descr': '<f2', 'fortran_order': False, 'shape': (64,), }"


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPX\1\0" + header(GOOD)[8:],
        header(GOOD, b"\3\0"),
        header(GOOD, length=20),
        header(GOOD, length=60_000),
        header(GOOD, b"\2\0", length=(1 << 32) - 1),
        header(GOOD + " " * 600),
        header(""),
        header("(" * 500),
        header("__import__('os').system('true')"),
        header(GOOD.replace("64,", "64L,")),
        header(GOOD.replace("64,", "-64,")),
        header(GOOD.replace("64,", "63,")),
        header(GOOD.replace("64,", "9" * 300 + ",")),
        header(GOOD.replace("64,", "0, " + "9" * 300)),
        header(GOOD.replace("64,", "0x40,")),
        header(GOOD.replace("64,", "\u0666\u0664,")),
        header(GOOD.replace("False", "exec('1')")),
        header(GOOD.replace("<f2", "O")),
        header(GOOD + "\n\n" + GOOD),
    ],
)
def test_header_refused(tmp_path, start):
    folder = written(tmp_path, CONFIG, halves(CONFIG), HALF)
    with zipfile.ZipFile(folder / "weights.1.npz", "w") as archive:
        archive.writestr("a.npy", start + bytes(128))
    (folder / "weights.npz").rename(folder / "weights.0.npz")
    refused(folder, "weights.1.npz: 'a.npy' ")
    with zipfile.ZipFile(folder / "weights.1.npz", "w") as archive:
        archive.writestr("norm.weight.npy", header(GOOD) + bytes(128))
    refused(folder, "norm.weight' is in weights.0.npz and weights.1.npz")


def test_archive_refused(tmp_path):
    folder = written(tmp_path, CONFIG, halves(CONFIG), HALF)
    file = folder / "weights.npz"
    data = file.read_bytes()
    for end in (0, 1, 1000, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:end])
        refused(folder, "weights.npz is not a whole zip archive")
    np.savez_compressed(file, **halves(CONFIG))
    refused(folder, "is compressed")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "a")
    refused(folder, "weights.npz holds 'a.txt', which is not an array")
    file.unlink()
    file.symlink_to(folder / "absent")
    refused(folder, "No such file")


# --- any bytes at all


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    config = replace(tiny_config(hidden_size=32, intermediate_size=32, head_dim=8),
                     num_hidden_layers=1, num_local_experts=2, vocab_size=8)  # fmt: skip
    arrays = quantized(halves(config))
    return written(tmp_path_factory.mktemp("tiny"), config, arrays, CODES)


@pytest.mark.fuzz
@given(data=st.data())
def test_damaged(tiny, data):
    """A damaged archive is one line, or a model whose bytes lie within it."""
    file = tiny / "weights.npz"
    sound = (tiny / "sound").read_bytes() if (tiny / "sound").exists() else file.read_bytes()
    (tiny / "sound").write_bytes(sound)
    out = bytearray(sound)
    # Headers are what is interesting: before each array, and in the directory at the end.
    starts = [n for n in range(len(out)) if out[n : n + 2] in (b"PK", b"\x93N")]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(starts)) + data.draw(st.integers(0, 140))
        out[at : at + 1] = data.draw(st.binary(max_size=3))
    file.write_bytes(out)
    try:
        source = read_npz(tiny)
    except MixtralError as error:
        message, parts = str(error), []
    else:
        message = source.form
        parts = [part for tensor in source.tensors.values() for part in tensor.parts]
    assert message.isprintable()
    for part in parts:
        assert part.read().shape == part.shape


def test_json_of_any_kind(codes):
    for text in ("", "[]", "{", '{"quantization": 3}', json.dumps({"quantization": {"a": {}}})):
        (codes / "config.json").write_text(text)
        refused(codes, "config.json")
