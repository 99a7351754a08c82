"""GPTQ: against packers written from the format, and what AutoGPTQ and GPTQModel packed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import encode, random_weights, tiny_config
from formats_gptq import (
    Array,
    Quantized,
    gptq_arrays,
    in_disorder,
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
from convert.readers.gptq import read_gptq
from mlx_mixtral.config import QuantSpec
from mlx_mixtral.errors import MixtralError, ModelError, UsageError

GOLDEN = Path(__file__).parent / "golden_gptq" / "golden.npz"
MIXTRAL = tiny_config(hidden_size=128, intermediate_size=256, num_attention_heads=8)
MISTRAL = tiny_config(
    hidden_size=128,
    intermediate_size=160,
    num_attention_heads=8,
    num_local_experts=0,
    num_hidden_layers=1,
)
Q_PROJ = "model.layers.0.self_attn.q_proj"


def settings(bits: int, size: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": size} | more


def part_of(source: Source, path: str) -> Part:
    """The part that a module of the checkpoint has become."""
    name, expert = place(path)
    return source.tensors[f"{name}.weight"].parts[expert or 0]


def held_exactly(part: Part, q: Quantized, bound: float = 0) -> None:
    """The part's codes are the packer's, and its scales; weights are off by ``bound`` steps."""
    assert part.exact
    assert part.spec
    weight, scales, biases = (np.asarray(array) for array in part.codes())
    assert weight.tolist() == [stream(row, q.bits) for row in q.codes]
    size = part.spec.group_size
    of_group = q.groups[::size]
    assert scales.dtype == biases.dtype == np.float16
    assert np.array_equal(scales, q.scales[:, of_group])
    wide = [mx.array(array.astype(np.float32)) for array in (scales, biases)]
    values = mx.dequantize(mx.array(weight), *wide, group_size=size, bits=q.bits)
    error = abs(np.asarray(values, np.float64) - q.weights)
    assert (error <= bound * q.scales.astype(np.float64)[:, q.groups]).all()


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, Array]]:
    cases: dict[str, dict[str, Array]] = {}
    for key, array in np.load(GOLDEN).items():
        name, kind = key.split("/")
        cases.setdefault(name, {})[kind] = array
    return cases


K_PROJ = "model.layers.0.self_attn.k_proj"


def golden_part(folder: Path, case: dict[str, Array], config: dict[str, Any], read: Any) -> Part:
    """A model with one matrix of the golden file, 32 x 128, as its k_proj."""
    raw = {
        name: encode(values, "F16")
        for name, values in random_weights(MISTRAL).items()
        if name != f"{K_PROJ}.weight"
    }
    for kind in ("qweight", "qzeros", "scales", "g_idx"):
        if kind in case:
            raw[f"{K_PROJ}.{kind}"] = encode(case[kind], "F16" if kind == "scales" else "I32")
    return part_of(read(write(folder, MISTRAL, raw, config)), K_PROJ)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("maker", "size", "form"),
    [
        ("autogptq-{}-sym", 32, "gptq"),
        ("autogptq-{}-order", 32, "gptq"),
        ("gptqmodel-{}", 64, "gptq_v2"),
        ("gptqmodel-{}", 64, "gptq"),
    ],
)
def test_what_other_programs_packed(
    tmp_path: Path, golden: Any, bits: int, maker: str, size: int, form: str
) -> None:
    case = dict(golden[maker.format(bits)])
    if maker.startswith("gptqmodel") and form == "gptq":
        case["qzeros"] = case["qzeros_v1"]
    more = {"checkpoint_format": form, "sym": "sym" in maker, "meta": {"quantizer": ["none:1"]}}
    if maker.startswith("gptqmodel"):
        more["meta"] = {"quantizer": ["gptqmodel:7.7.0"]}
    part = golden_part(tmp_path, case, settings(bits, size, **more), read_gptq)
    q = Quantized(bits, case["codes"], case["scales"].T, case["zeros"], case["g_idx"])
    assert np.array_equal(np.asarray(part.read()), q.weights.astype(np.float16))
    assert np.array_equal(np.asarray(part.read())[:8], case["weights"])
    if np.array_equal(q.groups, in_groups(128, size)):
        held_exactly(part, q, bound=2.0 ** (bits - 11))
    else:
        assert not part.exact


def test_a_whole_row_that_autogptq_packed(tmp_path: Path, golden: Any) -> None:
    case = golden["autogptq-4-row"]
    part = golden_part(tmp_path, case, settings(4, -1), read_gptq)
    held_exactly(part, Quantized(4, case["codes"], case["scales"].T, case["zeros"], case["g_idx"]))
    assert part.spec == QuantSpec(4, 128)


CASES = [
    # bits, group size, symmetric, v2, g_idx, experts, shards
    (4, 128, True, False, True, True, 3),
    (4, 32, False, False, True, False, 1),
    (4, -1, True, True, False, False, 2),
    (8, 128, False, True, True, False, 1),
    (3, 64, True, False, False, True, 2),
    (3, 32, False, False, True, False, 1),
    (2, 64, False, False, True, False, 1),
    (2, 16, True, False, True, False, 1),
]


@pytest.mark.parametrize(("bits", "size", "symmetric", "v2", "g_idx", "moe", "shards"), CASES)
def test_a_whole_model(
    tmp_path: Path,
    bits: int,
    size: int,
    symmetric: bool,
    v2: bool,
    g_idx: bool,
    moe: bool,
    shards: int,
) -> None:
    config = MIXTRAL if moe else MISTRAL
    width = config.intermediate_size
    weights, quantized = quantize_model(config, linear(bits, size, symmetric=symmetric))
    raw = tensors(weights, quantized, lambda q: gptq_arrays(q, v2=v2, g_idx=g_idx))
    more = {"checkpoint_format": "gptq_v2"} if v2 else {}
    folder = write(tmp_path, config, raw, settings(bits, size, **more), shards=shards)
    source = read_gptq(folder)
    assert source.config == config
    for name, values in weights.items():
        part = part_of(source, name.removesuffix(".weight"))
        assert part.spec is None
        assert np.array_equal(np.asarray(part.read()), values.astype(np.float16))
    for path, q in quantized.items():
        part = part_of(source, path)
        assert np.array_equal(np.asarray(part.read()), q.weights.astype(np.float16))
        kinds = gptq_arrays(q, g_idx=g_idx)
        assert part.nbytes == sum(len(raw[f"{path}.{kind}"][2]) for kind in kinds)
        if size == 16:
            wide = 64 if q.codes.shape[1] % 64 == 0 else 32
            assert (part.exact, part.spec) == (False, QuantSpec(4, wide))
        else:
            held_exactly(part, q, bound=0 if symmetric else 2.0 ** (bits - 11))
            if size > 0 and width % 128 == 0:
                assert part.spec == QuantSpec(bits, size)
    files = {file.name for path in quantized for file in part_of(source, path).files}
    assert len(files) == shards
    assert len(source.files) == shards


@pytest.mark.parametrize(("bits", "again"), [(2, 4), (3, 5), (4, 6), (8, 8)])
def test_order_of_activation(tmp_path: Path, bits: int, again: int) -> None:
    weights, quantized = quantize_model(MISTRAL, linear(bits, 32, order=True))
    raw = tensors(weights, quantized, gptq_arrays)
    source = read_gptq(write(tmp_path, MISTRAL, raw, settings(bits, 32, desc_act=False)))
    for path, q in quantized.items():
        part = part_of(source, path)
        size = 64 if q.codes.shape[1] % 64 == 0 else 32
        assert (part.exact, part.spec) == (False, QuantSpec(again, size))
        assert part.dtype == mx.float16
        assert np.array_equal(np.asarray(part.read()), q.weights.astype(np.float16))
    assert any("order of activation" in note and f"{again} bits" in note for note in source.notes)


def test_groups_in_another_order_keep_their_codes(tmp_path: Path) -> None:
    """GPTQModel may number the groups as it likes; each is still 32 columns side by side."""

    def pack(path: str, values: Array) -> Quantized | None:
        blocks = np.array([2, 0, 3, 1])
        return quantize(values, 4, blocks[in_groups(128, 32)]) if path == Q_PROJ else None

    weights, quantized = quantize_model(MISTRAL, pack)
    raw = tensors(weights, quantized, gptq_arrays)
    source = read_gptq(write(tmp_path, MISTRAL, raw, settings(4, 32)))
    held_exactly(part_of(source, Q_PROJ), quantized[Q_PROJ])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_zero_point_of_0_is_stored_as_the_largest(tmp_path: Path, bits: int) -> None:
    rng = np.random.default_rng(11)
    zeros = rng.integers(0, 2, (128, 4)) * rng.integers(0, 1 << bits, (128, 4))
    codes = rng.integers(0, 1 << bits, (128, 128))
    scales = rng.uniform(0.01, 0.02, (128, 4)).astype(np.float16)
    q = Quantized(bits, codes, scales, zeros, in_groups(128, 32))
    weights, quantized = quantize_model(MISTRAL, lambda path, _: q if path == Q_PROJ else None)
    raw = tensors(weights, quantized, gptq_arrays)
    part = part_of(read_gptq(write(tmp_path, MISTRAL, raw, settings(bits, 32))), Q_PROJ)
    held_exactly(part, q, bound=2.0 ** (bits - 11))
    assert np.array_equal(np.asarray(part.read()), q.weights.astype(np.float16))


@pytest.mark.parametrize("block", [1, 3000, 5000])
def test_matrices_larger_than_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("convert.readers.grid.BLOCK", block)
    for bits in (3, 4):
        weights, quantized = quantize_model(MISTRAL, linear(bits, 32, order=True))
        raw = tensors(weights, quantized, gptq_arrays)
        source = read_gptq(write(tmp_path / str(bits), MISTRAL, raw, settings(bits, 32)))
        for path, q in quantized.items():
            values = np.asarray(part_of(source, path).read())
            assert np.array_equal(values, q.weights.astype(np.float16))


def test_a_group_of_more_than_128_is_told(tmp_path: Path) -> None:
    weights, quantized = quantize_model(MIXTRAL, linear(4, -1))
    raw = tensors(weights, quantized, gptq_arrays)
    source = read_gptq(write(tmp_path, MIXTRAL, raw, settings(4, -1)))
    assert source.form == "GPTQ, 4 bits in whole rows"
    assert any("whole rows" in note and "128" in note for note in source.notes)


def test_rounded_biases_are_told(tmp_path: Path) -> None:
    weights, quantized = quantize_model(MISTRAL, linear(4, 32, symmetric=False))
    raw = tensors(weights, quantized, gptq_arrays)
    source = read_gptq(write(tmp_path, MISTRAL, raw, settings(4, 32, sym=False)))
    assert any("1/128" in note for note in source.notes)
    assert source.form == "GPTQ, 4 bits in groups of 32"


def test_nothing_is_told_of_the_usual_form(tmp_path: Path) -> None:
    weights, quantized = quantize_model(MISTRAL, linear(4, 32))
    raw = tensors(weights, quantized, gptq_arrays)
    assert read_gptq(write(tmp_path, MISTRAL, raw, settings(4, 32, sym=True))).notes == ()


def test_settings_beside_and_autogptqs_file_names(tmp_path: Path) -> None:
    weights, quantized = quantize_model(MISTRAL, linear(4, 32))
    raw = tensors(weights, quantized, gptq_arrays)
    write(tmp_path, MISTRAL, raw, None, shards=2, file="gptq_model-4bit-32g")
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32}))
    held_exactly(part_of(read_gptq(tmp_path), Q_PROJ), quantized[Q_PROJ])


def test_v2_zero_points_under_the_older_label(tmp_path: Path) -> None:
    weights, quantized = quantize_model(MISTRAL, linear(4, 32))
    raw = tensors(weights, quantized, lambda q: gptq_arrays(q, v2=True))
    source = read_gptq(write(tmp_path, MISTRAL, raw, settings(4, 32, sym=True)))
    held_exactly(part_of(source, Q_PROJ), quantized[Q_PROJ])
    assert any("against what config.json says" in note for note in source.notes)


def test_zero_points_that_contradict_sym(tmp_path: Path) -> None:
    weights, quantized = quantize_model(MISTRAL, linear(4, 32, symmetric=False))
    raw = tensors(weights, quantized, gptq_arrays)
    with pytest.raises(ModelError, match="not in the middle"):
        read_gptq(write(tmp_path, MISTRAL, raw, settings(4, 32, sym=True)))


def test_matrices_that_differ(tmp_path: Path) -> None:
    """With ``dynamic`` some have other bits; shapes tell, and the head may be quantized too."""

    def pack(path: str, values: Array) -> Quantized | None:
        if path == "lm_head":
            return quantize(values, 8, in_groups(128, 32))
        return quantize(values, 4, in_groups(128, 128)) if path == Q_PROJ else None

    weights, quantized = quantize_model(MISTRAL, pack)
    raw = tensors(weights, quantized, gptq_arrays)
    folder = write(tmp_path, MISTRAL, raw, settings(4, 128, dynamic={"+:lm_head": {"bits": 8}}))
    source = read_gptq(folder)
    for path, q in quantized.items():
        held_exactly(part_of(source, path), q)
    assert source.form == "GPTQ, 4 and 8 bits in groups of 128"


def test_newer_names_of_experts(tmp_path: Path) -> None:
    weights, quantized = quantize_model(MIXTRAL, linear(4, 32))
    raw = tensors(weights, quantized, gptq_arrays)
    new = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    renamed = {}
    for name, value in raw.items():
        for old, usual in new.items():
            name = name.replace(f".{old}.", f".{usual}.")
        renamed[name.replace("block_sparse_moe", "mlp")] = value
    source = read_gptq(write(tmp_path, MIXTRAL, renamed, settings(4, 32)))
    for path, q in quantized.items():
        held_exactly(part_of(source, path), q)


def test_biases_of_zeros(tmp_path: Path) -> None:
    weights, quantized = quantize_model(MISTRAL, linear(4, 32))
    raw = tensors(weights, quantized, gptq_arrays)
    rows = len(quantized[Q_PROJ].codes)
    raw[f"{Q_PROJ}.bias"] = encode(np.zeros(rows), "F16")
    assert read_gptq(write(tmp_path, MISTRAL, raw, settings(4, 32)))
    raw[f"{Q_PROJ}.bias"] = encode(np.eye(rows)[0], "F16")
    with pytest.raises(ModelError, match=r"q_proj: it has a bias"):
        read_gptq(write(tmp_path, MISTRAL, raw, settings(4, 32)))


def test_parts_are_read_in_threads(tmp_path: Path) -> None:
    weights, quantized = quantize_model(MISTRAL, linear(4, 32))
    raw = tensors(weights, quantized, gptq_arrays)
    source = read_gptq(write(tmp_path, MISTRAL, raw, settings(4, 32)))
    parts = [part_of(source, path) for path in quantized]
    with ThreadPoolExecutor(3) as pool:
        values = list(pool.map(lambda part: np.asarray(part.read()), parts))
    for value, q in zip(values, quantized.values(), strict=True):
        assert np.array_equal(value, q.weights.astype(np.float16))


# --- damage


def one_matrix(folder: Path, changes: dict[str, Any], more: dict[str, Any] | None = None) -> Path:
    """A model whose q_proj alone is quantized; ``changes`` replaces arrays, None drops them."""

    def pack(path: str, values: Array) -> Quantized | None:
        return quantize(values, 4, in_disorder(128, 32)) if path == Q_PROJ else None

    weights, quantized = quantize_model(MISTRAL, pack)
    raw: dict[str, Any] = tensors(weights, quantized, gptq_arrays)
    for kind, value in changes.items():
        if value is None:
            del raw[f"{Q_PROJ}.{kind}"]
        else:
            dtype = "I32" if value.dtype.kind == "i" else "F16"
            raw[f"{Q_PROJ}.{kind}"] = encode(value, dtype)
    return write(folder, MISTRAL, raw, settings(4, 32, sym=True) | (more or {}))


def ints(*shape: int) -> Array:
    return np.zeros(shape, np.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qweight": None}, "qweight"),
        ({"qzeros": None}, "lacks qzeros"),
        ({"scales": None}, "scales are missing"),
        ({"qweight": ints(15, 128)}, r"qweight has shape \[15, 128\], \[16, 128\]"),
        ({"qweight": ints(16, 128, 1)}, "qweight has shape"),
        ({"qweight": np.zeros((16, 128), np.float16)}, "qweight is mlx.core.float16"),
        ({"qzeros": ints(4, 15)}, r"qzeros has shape \[4, 15\]"),
        ({"qzeros": ints(3, 16)}, "qzeros has shape"),
        ({"scales": np.ones((4, 127), np.float16)}, "scales has shape"),
        ({"scales": np.ones((0, 128), np.float16)}, "scales are missing or of a wrong shape"),
        ({"scales": ints(4, 128)}, "scales is mlx.core.int32"),
        ({"g_idx": ints(127)}, "g_idx has shape"),
        ({"g_idx": np.full(128, 4, np.int32)}, "g_idx names groups 4 to 4 of 4"),
        ({"g_idx": np.full(128, -1, np.int32)}, "g_idx names groups -1 to -1 of 4"),
        ({"zeros": ints(4)}, "q_proj.* has no place"),
        ({"weight": np.ones((128, 128), np.float16)}, "q_proj.* has no place"),
    ],
)
def test_damaged_arrays(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        read_gptq(one_matrix(tmp_path, changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 60000.0])
def test_scales_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    scales = np.full((4, 128), 0.01, np.float16)
    scales[2, 5] = value
    part = part_of(read_gptq(one_matrix(tmp_path, {"scales": scales})), Q_PROJ)
    with pytest.raises(ModelError, match=r"model.safetensors: .*q_proj: its scales or zero"):
        part.read()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"bits": 5}, "5 bits"),
        ({"bits": "4"}, "bits is '4'"),
        ({"bits": 8}, "qweight has shape"),
        ({"group_size": 0}, "groups of 0"),
        ({"checkpoint_format": "marlin"}, "packed for 'marlin'"),
        ({"is_marlin_format": True}, "packed for 'marlin'"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_gptq(one_matrix(tmp_path, {}, more))


@pytest.mark.parametrize("size", [-1, 100, 1 << 70])
def test_groups_that_do_not_divide(tmp_path: Path, size: int) -> None:
    with pytest.raises(ModelError, match="4 groups in 128 columns"):
        read_gptq(one_matrix(tmp_path, {"g_idx": None}, {"group_size": size}))


def test_groups_wider_than_a_row(tmp_path: Path) -> None:
    weights, quantized = quantize_model(MISTRAL, linear(4, -1))
    raw = tensors(weights, quantized, lambda q: gptq_arrays(q, g_idx=False))
    source = read_gptq(write(tmp_path, MISTRAL, raw, settings(4, 1 << 70)))
    held_exactly(part_of(source, Q_PROJ), quantized[Q_PROJ])


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        read_gptq(tmp_path / "none")
    with pytest.raises(ModelError, match=r"config\.json"):
        read_gptq(tmp_path)
    folder = one_matrix(tmp_path, {})
    (folder / "model.safetensors").rename(folder / "model.bin")
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        read_gptq(folder)
    raw = {name: encode(values, "F16") for name, values in random_weights(MISTRAL).items()}
    with pytest.raises(ModelError, match="none of its matrices is"):
        read_gptq(write(tmp_path, MISTRAL, raw, settings(4, 32)))


def test_indexes_that_mislead(tmp_path: Path) -> None:
    folder = one_matrix(tmp_path, {})
    index = folder / "model.safetensors.index.json"
    for weight_map, message in (
        ({"a.weight": "../secret.safetensors"}, "points outside its folder"),
        ({"a.weight": "other.safetensors"}, "other.safetensors is missing"),
        ({"a.weight": "model.safetensors"}, "lacks a.weight"),
        ({"a.weight": 1}, "has no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ModelError, match=message):
            read_gptq(folder)


def test_a_file_cut_short_after_it_was_opened(tmp_path: Path) -> None:
    folder = one_matrix(tmp_path, {})
    part = part_of(read_gptq(folder), Q_PROJ)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(ModelError, match="ended while it was read"):
        part.read()


# --- fuzz


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_matrix(tmp_path_factory.mktemp("sound"), {})


def refusal(folder: Path) -> str:
    """Whatever the folder holds: it is read, or refused in these words."""
    try:
        source = read_gptq(folder)
        part = part_of(source, Q_PROJ)
        assert part.read().shape == part.shape
        if part.exact:
            part.codes()
    except MixtralError as error:
        return str(error)
    return ""


@pytest.mark.fuzz
@given(data=st.data())
def test_any_header(sound: Path, data: st.DataObject) -> None:
    file = sound / "model.safetensors"
    good = file.read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    entry = header[
        f"{Q_PROJ}.{data.draw(st.sampled_from(['qweight', 'qzeros', 'scales', 'g_idx']))}"
    ]
    small = st.integers(-1, 300)
    field = data.draw(st.sampled_from(["shape", "dtype", "data_offsets"]))
    entry[field] = data.draw(
        st.sampled_from(["I32", "F16", "BF16", "U8", "I64", None])
        if field == "dtype"
        else st.lists(small | st.just(1 << 40), max_size=3)
    )
    text = json.dumps(header).encode()
    try:
        file.write_bytes(len(text).to_bytes(8, "little") + text + good[8 + length :])
        assert "\n" not in refusal(sound)
    finally:
        file.write_bytes(good)


@pytest.mark.fuzz
@given(at=st.integers(0, 1 << 20), flip=st.integers(1, 255), cut=st.integers(0, 50))
def test_any_bytes(sound: Path, at: int, flip: int, cut: int) -> None:
    file = sound / "model.safetensors"
    good = file.read_bytes()
    bad = bytearray(good)
    bad[at % len(bad)] ^= flip
    try:
        file.write_bytes(bad[: len(bad) - max(0, cut - 40)])
        assert "\n" not in refusal(sound)
    finally:
        file.write_bytes(good)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)
KEYS = ["bits", "group_size", "sym", "checkpoint_format", "meta", "dynamic", "is_marlin_format"]


@pytest.mark.fuzz
@given(more=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3), whole=st.none() | JSON)
def test_any_settings(sound: Path, more: dict[str, Any], whole: Any) -> None:
    file = sound / "config.json"
    good = file.read_text()
    config = json.loads(good)
    config["quantization_config"] = whole or config["quantization_config"] | more
    try:
        file.write_text(json.dumps(config))
        assert "\n" not in refusal(sound)
    finally:
        file.write_text(good)
