"""HQQ: against matrices that the program hqq packed, and a packer written from the format."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import encode, random_weights, tiny_config
from formats_gptq import Array, place, write
from hypothesis import given
from hypothesis import strategies as st

from convert.readers import Part, Source
from convert.readers.hqq import read_hqq
from mlx_mixtral.config import QuantSpec
from mlx_mixtral.errors import MixtralError, ModelError

GOLDEN = Path(__file__).parent / "golden_gptq" / "golden.npz"
MIXTRAL = tiny_config(num_hidden_layers=1)
MISTRAL = tiny_config(
    hidden_size=128, num_attention_heads=8, num_local_experts=0, num_hidden_layers=1
)
K_PROJ = "model.layers.0.self_attn.k_proj"
SETTINGS = {"quant_method": "hqq", "quant_config": {}, "skip_modules": ["lm_head"]}


def part_of(source: Source, path: str) -> Part:
    """The part that a module of the checkpoint has become."""
    name, expert = place(path)
    return source.tensors[f"{name}.weight"].parts[expert or 0]


def raw_of(values: Array) -> tuple[str, tuple[int, ...], bytes]:
    kinds = {"f4": "F32", "f2": "F16", "i4": "I32", "i8": "I64", "u1": "U8"}
    return kinds[values.dtype.str[1:]], values.shape, values.tobytes()


def with_k_proj(folder: Path, arrays: dict[str, Array], settings: Any = SETTINGS) -> Path:
    """A dense model whose k_proj, 32 x 128, alone is quantized."""
    raw = {
        name: encode(values, "F16")
        for name, values in random_weights(MISTRAL).items()
        if name != f"{K_PROJ}.weight"
    }
    for kind, values in arrays.items():
        raw[f"{K_PROJ}.{kind}"] = raw_of(values)
    return write(folder, MISTRAL, raw, settings)


def golden(name: str) -> tuple[dict[str, Array], Array]:
    """Arrays, and the first rows of the weights as hqq itself unpacks them."""
    found = {k.split("/")[1]: v for k, v in np.load(GOLDEN).items() if k.startswith(f"{name}/")}
    weights = found.pop("weights")
    return found, weights


@pytest.mark.parametrize(
    ("name", "spec", "exact"),
    [
        ("hqq-4-64-1", QuantSpec(4, 64), True),
        ("hqq-4-64-1-float", QuantSpec(4, 64), True),
        ("hqq-3-64-1", QuantSpec(3, 64), True),
        ("hqq-2-32-1", QuantSpec(2, 32), True),
        ("hqq-1-64-1", QuantSpec(1, 64), True),
        ("hqq-5-128-1", QuantSpec(5, 128), True),
        ("hqq-8-128-1", QuantSpec(8, 128), True),
        ("hqq-4-64-0", QuantSpec(6, 64), False),
        ("hqq-3-32-0", QuantSpec(5, 64), False),
    ],
)
def test_what_hqq_packed(tmp_path: Path, name: str, spec: QuantSpec, exact: bool) -> None:
    arrays, weights = golden(name)
    source = read_hqq(with_k_proj(tmp_path, arrays))
    part = part_of(source, K_PROJ)
    values = np.asarray(part.read())
    assert np.array_equal(values[:8], weights)
    assert (part.spec, part.exact, part.dtype) == (spec, exact, mx.float16)
    bits, size = arrays["nbits"].item(), arrays["group_size"].item()
    assert source.form == f"HQQ, {bits} bits in groups of {size}"
    if not exact:
        assert any("their groups cross rows" in note for note in source.notes)
        return
    weight, scales, biases = part.codes()
    assert scales.dtype == biases.dtype == mx.float16
    wide = (scales.astype(mx.float32), biases.astype(mx.float32))
    again = mx.dequantize(weight, *wide, group_size=size, bits=bits)
    # hqq's scales are float32 here: they are rounded too, by 1/2048 of up to 2^bits steps.
    step = np.repeat(np.asarray(scales, np.float64), size, axis=1)
    assert (abs(np.asarray(again, np.float64) - values) <= step * 2.0 ** (bits - 10)).all()


def packed(codes: Array, scales: Array, zeros: Array, axis: int) -> dict[str, Array]:
    """4-bit codes [out, in] as the format says, one by one. Scales and zeros: one to a group."""
    size = codes.size // scales.size
    shape = (-1, size) if axis else (size, -1)
    grouped = codes.reshape(shape)
    half = len(grouped) // 2
    w_q = np.zeros((half, grouped.shape[1]), np.uint8)
    for r in range(half):
        for c in range(grouped.shape[1]):
            w_q[r, c] = 16 * int(grouped[r, c]) + int(grouped[r + half, c])
    one = (-1, 1) if axis else (1, -1)
    return {
        "W_q": w_q,
        "scale": scales.astype(np.float16).reshape(one),
        "zero": zeros.astype(np.float16).reshape(one),
        "nbits": np.array(4, np.int32),
        "group_size": np.array(size, np.int32),
        "axis": np.array(axis, np.int32),
        "shape": np.array(codes.shape, np.int64),
    }


@pytest.mark.parametrize(("axis", "block"), [(0, 1 << 18), (1, 1 << 18), (0, 500), (1, 500)])
def test_a_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: int, block: int
) -> None:
    monkeypatch.setattr("convert.readers.hqq.BLOCK", block)
    rng = np.random.default_rng(5)
    raw, expected = {}, {}
    for name, values in random_weights(MIXTRAL).items():
        path = name.removesuffix(".weight")
        if values.ndim < 2 or path.endswith((".gate", "lm_head", "embed_tokens")):
            raw[name] = encode(values, "F16")
            continue
        codes = rng.integers(0, 16, values.shape)
        scales = (rng.random(values.size // 32) / 50).astype(np.float16)
        zeros = (rng.random(scales.size) * 15).astype(np.float16)
        for kind, array in packed(codes, scales, zeros, axis).items():
            raw[f"{path}.{kind}"] = raw_of(array)
        # Group g is row g of [groups, size], or column g of [size, groups].
        flat = np.arange(codes.size)
        group = flat // 32 if axis else flat % scales.size
        levels = scales.astype(np.float64)[group] * (
            codes.ravel() - zeros.astype(np.float64)[group]
        )
        expected[path] = (codes, scales, levels.reshape(codes.shape))
    source = read_hqq(write(tmp_path, MIXTRAL, raw, SETTINGS, shards=2))
    assert len(source.files) == 2
    for path, (codes, scales, values) in expected.items():
        part = part_of(source, path)
        # Two roundings to float32 stand before the one to float16.
        assert np.allclose(np.asarray(part.read(), np.float64), values, rtol=2**-10, atol=1e-7)
        assert part.exact is bool(axis)
        if axis:
            weight, kept, _ = (np.asarray(array) for array in part.codes())
            assert np.array_equal(kept, scales.reshape(kept.shape))
            assert np.array_equal(
                (weight[:, :, None] >> (4 * np.arange(8)) & 15).reshape(codes.shape), codes
            )


def sound() -> dict[str, Array]:
    codes = np.random.default_rng(1).integers(0, 16, (32, 128))
    return packed(codes, np.full(64, 0.01), np.full(64, 7.5), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_q": None}, "W_q is not the 2,048 bytes"),
        ({"W_q": np.zeros((32, 63), np.uint8)}, "W_q is not the 2,048 bytes"),
        ({"nbits": None}, "lacks nbits"),
        ({"nbits": np.array(1.58, np.float32)}, "nbits is mlx.core.float32"),
        ({"nbits": np.array(7, np.int32)}, "7 bits"),
        ({"nbits": np.zeros(2, np.int32)}, "nbits has shape"),
        ({"axis": np.array(2, np.int32)}, "along axis 2"),
        ({"group_size": np.array(0, np.int32)}, "groups of 0"),
        ({"group_size": np.array(-64, np.int32)}, "groups of"),
        ({"scale": np.ones((63, 1), np.float16)}, r"scale has shape \[63, 1\]"),
        ({"zero": None}, "lacks zero"),
        ({"zero": np.ones((64, 1), np.int32)}, "zero is mlx.core.int32"),
        ({"shape": np.array([128, 32])}, "it is 128 x 32, not 32 x 128"),
        ({"quant_zero": np.array(1, np.uint8)}, "quantized in turn"),
        ({"zero_q": np.zeros((64, 1), np.uint8)}, "has no place"),
        ({"bias": np.ones(32, np.float16)}, "it has a bias"),
    ],
)
def test_damaged_arrays(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = {k: v for k, v in (sound() | changes).items() if v is not None}
    with pytest.raises(ModelError, match=message) as caught:
        read_hqq(with_k_proj(tmp_path, arrays))
    assert "\n" not in str(caught.value)


def test_values_that_cannot_be(tmp_path: Path) -> None:
    for changes, message in (
        ({"scale": np.full((64, 1), np.nan, np.float16)}, "its scales"),
        ({"zero": np.full((64, 1), np.inf, np.float16)}, "its scales"),
        ({"nbits": np.array(5, np.int32), "W_q": np.full((64, 64), 32, np.uint8)}, "5 bits"),
    ):
        part = part_of(read_hqq(with_k_proj(tmp_path, sound() | changes)), K_PROJ)
        for read in (part.read, part.codes):
            with pytest.raises(ModelError, match=message):
                read()


def test_nothing_quantized(tmp_path: Path) -> None:
    raw = {name: encode(values, "F16") for name, values in random_weights(MISTRAL).items()}
    with pytest.raises(ModelError, match="none of its matrices is"):
        read_hqq(write(tmp_path, MISTRAL, raw, SETTINGS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_k_proj(tmp_path_factory.mktemp("sound"), sound())


@pytest.mark.fuzz
@given(data=st.data())
def test_any_file(folder: Path, data: st.DataObject) -> None:
    file = folder / "model.safetensors"
    good = file.read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    kind = data.draw(st.sampled_from(sorted(sound())))
    entry = header[f"{K_PROJ}.{kind}"]
    sizes = st.lists(st.sampled_from([-1, 0, 1, 2, 4, 32, 64, 128, 1 << 40]), max_size=3)
    entry["shape"] = data.draw(st.just(entry["shape"]) | sizes)
    entry["dtype"] = data.draw(st.sampled_from([entry["dtype"], "F16", "I32", "BF16", "U8"]))
    body = bytearray(good[8 + length :])
    begin, end = entry["data_offsets"]
    body[data.draw(st.integers(begin, end - 1))] = data.draw(st.integers(0, 255))
    text = json.dumps(header).encode()
    try:
        file.write_bytes(len(text).to_bytes(8, "little") + text + body)
        with suppress(MixtralError):
            part = part_of(read_hqq(folder), K_PROJ)
            assert part.read().shape == part.shape
            if part.exact:
                part.codes()
    finally:
        file.write_bytes(good)
