"""AWQ: against packers written from the format, and matrices that AutoAWQ packed."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import encode, random_weights, tiny_config
from formats_gptq import (
    Array,
    Quantized,
    awq_arrays,
    awq_words,
    columns,
    in_groups,
    linear,
    place,
    quantize,
    quantize_model,
    stream,
    tensors,
    write,
)
from hypothesis import given
from hypothesis import strategies as st

from convert.readers import Part, Source
from convert.readers.awq import read_awq
from convert.readers.packing import awq_to_gptq
from mlx_mixtral.config import QuantSpec
from mlx_mixtral.errors import MixtralError, ModelError

GOLDEN = Path(__file__).parent / "golden_gptq" / "golden.npz"
MIXTRAL = tiny_config(hidden_size=128, intermediate_size=256, num_attention_heads=8)
MISTRAL = tiny_config(
    hidden_size=128, num_attention_heads=8, num_local_experts=0, num_hidden_layers=1
)
K_PROJ = "model.layers.0.self_attn.k_proj"


def settings(size: int = 128, **more: Any) -> dict[str, Any]:
    """What transformers has in config.json."""
    quantization = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True}
    return quantization | {"version": "gemm", "modules_to_not_convert": ["gate"]} | more


def part_of(source: Source, path: str) -> Part:
    """The part that a module of the checkpoint has become."""
    name, expert = place(path)
    return source.tensors[f"{name}.weight"].parts[expert or 0]


def held_closely(part: Part, q: Quantized) -> None:
    """The part's codes are the packer's, and its scales; weights are off by a 128th of a step."""
    assert part.exact
    assert part.spec
    weight, scales, biases = (np.asarray(array) for array in part.codes())
    assert weight.tolist() == [stream(row, 4) for row in q.codes]
    size = part.spec.group_size
    assert scales.dtype == biases.dtype == np.float16
    assert np.array_equal(scales, q.scales[:, q.groups[::size]])
    wide = [mx.array(array.astype(np.float32)) for array in (scales, biases)]
    values = mx.dequantize(mx.array(weight), *wide, group_size=size, bits=4)
    error = abs(np.asarray(values, np.float64) - q.weights)
    assert (error <= q.scales.astype(np.float64)[:, q.groups] / 128).all()
    # Where a zero point is a power of two, nothing is rounded.
    clean = np.isin(q.zeros, [0, 1, 2, 4, 8])[:, q.groups]
    assert (error[clean] == 0).all()
    assert np.array_equal(np.asarray(part.read()), q.weights.astype(np.float16))


def with_k_proj(folder: Path, arrays: dict[str, Array], config: dict[str, Any]) -> Path:
    """A dense model whose k_proj, 32 x 128, alone is quantized."""
    raw = {
        name: encode(values, "F16")
        for name, values in random_weights(MISTRAL).items()
        if name != f"{K_PROJ}.weight"
    }
    for kind, values in arrays.items():
        raw[f"{K_PROJ}.{kind}"] = encode(values, "I32" if values.dtype.kind == "i" else "F16")
    return write(folder, MISTRAL, raw, config)


@pytest.mark.parametrize("name", ["gemm-32", "gemm-128", "gemv-32", "gemv-64", "gemv-128"])
def test_what_autoawq_packed(tmp_path: Path, name: str) -> None:
    golden = {k.split("/")[1]: v for k, v in np.load(GOLDEN).items() if k.startswith(f"{name}/")}
    version, size = name.split("-")
    arrays = {kind: golden[kind] for kind in ("qweight", "qzeros", "scales")}
    source = read_awq(with_k_proj(tmp_path, arrays, settings(int(size), version=version.upper())))
    part = part_of(source, K_PROJ)
    scales = golden["scales"].T if version == "gemm" else golden["scales"][:, : 128 // int(size)]
    groups = in_groups(128, int(size))
    held_closely(part, Quantized(4, golden["codes"], scales, golden["zeros"], groups))
    assert part.spec == QuantSpec(4, int(size))
    if version == "gemm":
        assert np.array_equal(np.asarray(part.read())[:8], golden["weights"])


@pytest.mark.parametrize(
    ("config", "size", "shards"), [(MIXTRAL, 128, 3), (MIXTRAL, -1, 1), (MISTRAL, 64, 2)]
)
def test_a_whole_model(tmp_path: Path, config: Any, size: int, shards: int) -> None:
    weights, quantized = quantize_model(config, linear(4, size, symmetric=False))
    raw = tensors(weights, quantized, awq_arrays)
    source = read_awq(write(tmp_path, config, raw, settings(size), shards=shards))
    assert source.config == config
    for name, values in weights.items():
        part = part_of(source, name.removesuffix(".weight"))
        assert part.spec is None
        assert np.array_equal(np.asarray(part.read()), values.astype(np.float16))
    for path, q in quantized.items():
        part = part_of(source, path)
        held_closely(part, q)
        assert part.spec == QuantSpec(4, 128 if size < 0 else size)
        assert part.nbytes == sum(len(raw[f"{path}.{kind}"][2]) for kind in awq_arrays(q))
    files = {file.name for path in quantized for file in part_of(source, path).files}
    assert len(files) == len(source.files) == shards
    rows = f"groups of {size}" if size > 0 else "whole rows"
    assert source.form == f"AWQ, 4 bits in {rows}"
    assert any("1/128" in note for note in source.notes)


def test_words_of_more_than_a_block() -> None:
    codes = np.random.default_rng(2).integers(0, 16, (8 * 150, 16))
    assert np.array_equal(awq_to_gptq(awq_words(codes)), columns(codes, 4))


def test_a_router_that_was_quantized(tmp_path: Path) -> None:
    config = tiny_config(hidden_size=128, num_attention_heads=8, num_local_experts=8)
    gate = "model.layers.0.block_sparse_moe.gate"

    def pack(path: str, values: Array) -> Quantized | None:
        return quantize(values, 4, in_groups(128, 64), symmetric=False) if path == gate else None

    weights, quantized = quantize_model(config, pack)
    raw = tensors(weights, quantized, awq_arrays)
    source = read_awq(write(tmp_path, config, raw, settings(64)))
    held_closely(part_of(source, gate), quantized[gate])


def test_groups_that_mlx_has_not(tmp_path: Path) -> None:
    weights, quantized = quantize_model(MISTRAL, linear(4, 16, symmetric=False))
    raw = tensors(weights, quantized, awq_arrays)
    source = read_awq(write(tmp_path, MISTRAL, raw, settings(16)))
    part = part_of(source, K_PROJ)
    assert (part.exact, part.spec) == (False, QuantSpec(6, 64))
    assert np.array_equal(np.asarray(part.read()), quantized[K_PROJ].weights.astype(np.float16))
    assert any("MLX has no groups of 16" in note and "6 bits" in note for note in source.notes)


def test_settings_in_autoawqs_own_file(tmp_path: Path) -> None:
    weights, quantized = quantize_model(MISTRAL, linear(4, 64, symmetric=False))
    write(tmp_path, MISTRAL, tensors(weights, quantized, awq_arrays), None)
    own = {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}
    (tmp_path / "quant_config.json").write_text(json.dumps(own))
    held_closely(part_of(read_awq(tmp_path), K_PROJ), quantized[K_PROJ])


# --- damage


def ints(*shape: int) -> Array:
    return np.zeros(shape, np.int32)


SOUND = {
    "qweight": ints(128, 4) + 0x13579BDF,
    "qzeros": ints(2, 4) + 0x77777777,
    "scales": np.full((2, 32), 0.01, np.float16),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qweight": None}, "lacks qweight"),
        ({"qzeros": None}, "lacks qzeros"),
        ({"scales": None}, "lacks scales"),
        ({"qweight": ints(32, 16)}, r"qweight has shape \[32, 16\], \[128, 4\] is what fits"),
        ({"qzeros": ints(3, 4)}, "qzeros has shape"),
        ({"scales": np.ones((2, 31), np.float16)}, "scales has shape"),
        ({"scales": ints(2, 32)}, "scales is mlx.core.int32"),
        ({"qweight": np.zeros((128, 4), np.float16)}, "qweight is mlx.core.float16"),
        ({"g_idx": ints(128)}, "k_proj.* has no place"),
        ({"bias": np.ones(32, np.float16)}, "it has a bias"),
    ],
)
def test_damaged_arrays(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = {k: v for k, v in (SOUND | changes).items() if v is not None}
    with pytest.raises(ModelError, match=message) as caught:
        read_awq(with_k_proj(tmp_path, arrays, settings(64)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 30000.0])
def test_scales_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    scales = SOUND["scales"].copy()
    scales[1, 3] = value
    folder = with_k_proj(tmp_path, SOUND | {"scales": scales}, settings(64))
    part = part_of(read_awq(folder), K_PROJ)
    for read in (part.read, part.codes):
        with pytest.raises(ModelError, match=r"model\.safetensors: .*k_proj: its scales"):
            read()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"version": "gemv_fast"}, "packed for 'gemv_fast'"),
        ({"version": "llm-awq"}, "packed for 'llm-awq'"),
        ({"bits": 8}, "8 bits"),
        ({"group_size": 0}, "groups of 0"),
        ({"group_size": 48}, "groups of 48 do not divide"),
        ({"group_size": "64"}, "group_size is '64'"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_awq(with_k_proj(tmp_path, SOUND, settings(64) | more))


def test_nothing_quantized(tmp_path: Path) -> None:
    raw = {name: encode(values, "F16") for name, values in random_weights(MISTRAL).items()}
    with pytest.raises(ModelError, match="none of its matrices is"):
        read_awq(write(tmp_path, MISTRAL, raw, settings()))


# --- fuzz


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_k_proj(tmp_path_factory.mktemp("sound"), SOUND, settings(64))


@pytest.mark.fuzz
@given(data=st.data())
def test_any_file(sound: Path, data: st.DataObject) -> None:
    """Whatever the header and the settings say: it is read, or refused."""
    file, config = sound / "model.safetensors", sound / "config.json"
    good, good_config = file.read_bytes(), config.read_text()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    entry = header[f"{K_PROJ}.{data.draw(st.sampled_from(sorted(SOUND)))}"]
    sizes = st.lists(st.sampled_from([-1, 0, 1, 2, 4, 16, 32, 128, 1 << 40]), max_size=3)
    entry["shape"] = data.draw(st.just(entry["shape"]) | sizes)
    entry["dtype"] = data.draw(st.sampled_from([entry["dtype"], "F16", "I32", "BF16", "U8"]))
    more = {
        "group_size": data.draw(st.just(64) | st.integers(-2, 200)),
        "version": data.draw(st.sampled_from(["gemm", "gemv", None, 3])),
    }
    text = json.dumps(header).encode()
    body = bytearray(good[8 + length :])
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(0, 255))
    whole = json.loads(good_config)
    whole["quantization_config"] |= more
    try:
        file.write_bytes(len(text).to_bytes(8, "little") + text + body)
        config.write_text(json.dumps(whole))
        with suppress(MixtralError):
            part = part_of(read_awq(sound), K_PROJ)
            assert part.read().shape == part.shape
            if part.exact:
                part.codes()
    finally:
        file.write_bytes(good)
        config.write_text(good_config)
