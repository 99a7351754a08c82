"""GGUF: written with the ``gguf`` package, compared with what it dequantizes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import mistral_common
import mlx.core as mx
import numpy as np
import pytest
from checkpoints import random_weights, tiny_config, write_hf
from formats_gguf import (
    Array,
    random_blocks,
    tensors_of,
    vocabulary_of,
    write_gguf,
)
from gguf import GGMLQuantizationType as Type
from hypothesis import example, given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from convert.readers import Source, gguf_blocks, gguf_header
from convert.readers.extent import Extent, Joined
from convert.readers.gguf import read_gguf
from convert.readers.gguf_blocks import KINDS, Blocks
from convert.readers.gguf_header import read_header
from mlx_mixtral.config import ModelConfig, QuantSpec
from mlx_mixtral.errors import MixtralError, ModelError, UsageError
from mlx_mixtral.template import template_for
from mlx_mixtral.tokenizer import Tokenizer
from mlx_mixtral.weights import open_weights

MIXTRAL = tiny_config(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                      head_dim=128, hidden_size=256, intermediate_size=256,
                      num_local_experts=2)  # fmt: skip
MISTRAL = tiny_config(num_local_experts=0)

LOSSLESS = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.MXFP4, Type.NVFP4]
ROUNDED = [Type.Q4_K, Type.Q5_K]
OTHERS = {
    Type.Q6_K: 8, Type.Q3_K: 5, Type.Q2_K: 4, Type.IQ4_NL: 6, Type.IQ4_XS: 6, Type.IQ3_S: 5,
    Type.IQ3_XXS: 5, Type.IQ2_XXS: 4, Type.IQ2_XS: 4, Type.IQ2_S: 4, Type.IQ1_S: 4,
    Type.IQ1_M: 4, Type.TQ1_0: 4, Type.TQ2_0: 4,
}  # fmt: skip


def as_numpy(array: mx.array) -> Array:
    return np.array(array.astype(mx.float32))


def same(ours: mx.array, theirs: mx.array) -> bool:
    return ours.dtype == theirs.dtype and bool(mx.array_equal(ours, theirs))


def matrix(tmp_path: Path, kind: Type, rows: int = 5, width: int = 512, **more: Any):
    """Random blocks in a file, as a part; and what the package makes of them."""
    blocks = random_blocks(kind, rows, width)
    (tmp_path / "blocks").write_bytes(blocks.tobytes())
    extent = Extent(Joined((tmp_path / "blocks",)), 0, blocks.shape, mx.uint8)
    part = Blocks(extent, KINDS[kind], "it", **more)
    return part, blocks, gguf.quants.dequantize(blocks, kind)


# --- blocks


@pytest.mark.parametrize("kind", [*LOSSLESS, *ROUNDED, *OTHERS], ids=lambda kind: kind.name)
def test_every_type_reads_as_the_package_dequantizes_it(
    kind: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_blocks, "_WEIGHTS_AT_ONCE", 1024)  # three pieces, the last one short
    part, _, expected = matrix(tmp_path, kind)
    assert part.shape == (5, 512)
    assert part.dtype == mx.float16
    assert same(part.read(), mx.array(expected.astype(np.float16)))


@pytest.mark.parametrize("kind", [*LOSSLESS, *ROUNDED], ids=lambda kind: kind.name)
def test_codes_compute_what_the_package_does(
    kind: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly; scales of K types are rounded to 11 bits each."""
    monkeypatch.setattr(gguf_blocks, "_WEIGHTS_AT_ONCE", 1024)
    part, _, expected = matrix(tmp_path, kind)
    assert part.exact
    assert part.spec == KINDS[kind].spec
    weight, *scales = part.codes()
    spec = {"group_size": part.spec.group_size, "bits": part.spec.bits, "mode": part.spec.mode}
    if part.spec.mode != "affine":
        assert same(mx.dequantize(weight, *scales, **spec, dtype=mx.float32), mx.array(expected))
        return
    assert [array.dtype for array in scales] == [mx.float16, mx.float16]
    scales = [array.astype(mx.float32) for array in scales]
    ours = as_numpy(mx.dequantize(weight, *scales, **spec))
    if kind in LOSSLESS:
        assert np.array_equal(ours, expected)
        return
    bias = np.repeat(as_numpy(scales[1]), 32, axis=1)
    bound = (np.abs(ours - bias) + np.abs(bias)) * 2.0**-11 * 1.01
    assert (np.abs(ours - expected) <= bound).all()
    assert not np.array_equal(ours, expected)
    # What the note says: 0.08% of a weight's usual size.
    usual = np.sqrt(np.mean((ours - expected) ** 2) / np.mean(expected**2))
    assert usual < 0.0008


@pytest.mark.parametrize("kind", [*LOSSLESS, *ROUNDED], ids=lambda kind: kind.name)
def test_codes_are_those_of_the_blocks(kind: Type, tmp_path: Path) -> None:
    part, blocks, _ = matrix(tmp_path, kind, rows=2)
    bits = part.spec.bits
    words = np.array(part.codes()[0])
    assert words.dtype == np.uint32
    for row, stored in zip(words, blocks, strict=True):
        number = int.from_bytes(row.tobytes(), "little")
        ours = [number >> bits * i & (1 << bits) - 1 for i in range(512)]
        assert ours == list(plain_codes(kind, stored.tobytes()))


def plain_codes(kind: Type, row: bytes) -> Iterator[int]:
    """Code after code, as ggml's own loops go."""
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    for begin in range(0, len(row), size):
        block = row[begin : begin + size]
        for i in range(weights):
            if kind == Type.Q8_0:
                yield struct.unpack_from("b", block, 2 + i)[0] + 128
            elif kind in (Type.Q4_0, Type.Q4_1, Type.MXFP4):
                codes = block[{Type.Q4_0: 2, Type.Q4_1: 4, Type.MXFP4: 1}[kind] :]
                yield codes[i] & 15 if i < 16 else codes[i - 16] >> 4
            elif kind in (Type.Q5_0, Type.Q5_1):
                start = 2 if kind == Type.Q5_0 else 4
                [high] = struct.unpack_from("<I", block, start)
                codes = block[start + 4 :]
                yield (codes[i] & 15 if i < 16 else codes[i - 16] >> 4) | (high >> i & 1) << 4
            elif kind == Type.NVFP4:
                byte = block[4 + i // 16 * 8 + i % 8]
                yield byte & 15 if i % 16 < 8 else byte >> 4
            else:
                byte = block[(16 if kind == Type.Q4_K else 48) + i // 64 * 32 + i % 32]
                code = byte & 15 if i % 64 < 32 else byte >> 4
                yield code | (block[16 + i % 32] >> i // 32 & 1) << 4 if kind == Type.Q5_K else code


@pytest.mark.parametrize(
    ("kind", "bits"), OTHERS.items(), ids=lambda value: getattr(value, "name", "")
)
def test_other_types_say_how_to_requantize_them(kind: Type, bits: int, tmp_path: Path) -> None:
    part, _, _ = matrix(tmp_path, kind)
    assert not part.exact
    assert part.spec == QuantSpec(bits, 64)
    with pytest.raises(TypeError, match=kind.name):
        part.codes()


def test_groups_of_32_where_64_do_not_divide(tmp_path: Path) -> None:
    part, _, expected = matrix(tmp_path, Type.IQ4_NL, width=96)
    assert part.spec == QuantSpec(6, 32)
    assert same(part.read(), mx.array(expected.astype(np.float16)))


def test_vectors_stay_at_16_bits(tmp_path: Path) -> None:
    """Nobody quantizes norms, but where somebody does, they are read."""
    part, blocks, expected = matrix(tmp_path, Type.Q8_0, rows=1)
    vector = replace(part, extent=replace(part.extent, shape=(blocks.size,)))
    assert (vector.shape, vector.spec, vector.exact) == ((512,), None, False)
    assert same(vector.read(), mx.array(expected[0].astype(np.float16)))


def test_sizes_are_the_packages_own() -> None:
    for number, kind in KINDS.items():
        assert Type(number).name == kind.name
        assert (kind.block, kind.size) == gguf.GGML_QUANT_SIZES[Type(number)]


@pytest.mark.parametrize("scale", [600.0, float("inf"), float("nan")])
def test_scales_that_no_weight_has_are_damage(scale: float, tmp_path: Path) -> None:
    part, blocks, _ = matrix(tmp_path, Type.Q8_0)
    blocks[3, :2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    (tmp_path / "blocks").write_bytes(blocks.tobytes())
    for action in (part.read, part.codes):
        with pytest.raises(ModelError, match="it \\(Q8_0\\) holds numbers"):
            action()


@pytest.mark.parametrize(("kind", "offset"), [(Type.MXFP4, 0), (Type.NVFP4, 2)])
def test_scales_past_float16_are_damage(kind: Type, offset: int, tmp_path: Path) -> None:
    part, blocks, _ = matrix(tmp_path, kind)
    blocks[4, offset] = 255
    (tmp_path / "blocks").write_bytes(blocks.tobytes())
    for action in (part.read, part.codes):
        with pytest.raises(ModelError, match="holds numbers"):
            action()


# --- whole models

FLOAT = {Type.F32: "F32", Type.F16: "F16", Type.BF16: "BF16"}


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("kind", FLOAT, ids=lambda kind: kind.name)
def test_floats_are_those_of_the_checkpoint(kind: Type, stacked: bool, tmp_path: Path) -> None:
    config = tiny_config()
    weights = random_weights(config)
    write_gguf(tmp_path / "a.gguf", config, tensors_of(config, weights, stacked=stacked), kind)
    source = read_gguf(tmp_path / "a.gguf")
    assert source.form == f"GGUF, {kind.name}"
    is_checkpoint(source, tmp_path / "hf", config, FLOAT[kind])


@pytest.mark.parametrize("tied", [True, False])
def test_dense_and_tied(tied: bool, tmp_path: Path) -> None:
    config = tiny_config(num_local_experts=0, tie_word_embeddings=tied)
    weights = random_weights(config)
    write_gguf(tmp_path / "a.gguf", config, tensors_of(config, weights), Type.F16)
    is_checkpoint(read_gguf(tmp_path / "a.gguf"), tmp_path / "hf", config, "F16")


def is_checkpoint(source: Source, folder: Path, config: ModelConfig, dtype: str) -> None:
    """Bit for bit the Hugging Face checkpoint of the same weights."""
    weights = random_weights(config)
    write_hf(folder, config, weights, dtype=dtype)
    assert source.config == config
    assert source.folder is None
    expected = open_weights(folder, config)
    assert list(source.tensors) == sorted(expected, key=list(source.tensors).index)
    for name, tensor in source.tensors.items():
        theirs = expected[name]
        assert tensor.shape == theirs.shape
        parts = [part.read() for part in tensor.parts]
        ours = mx.stack(parts) if tensor.stacked else parts[0]
        # Norms and the router stay in float32, whatever the rest is.
        full = "norm" in name or name.endswith("block_sparse_moe.gate.weight")
        assert ours.dtype == (mx.float32 if full else theirs.dtype)
        wanted = mx.stack([span.read() for span in theirs.parts()]) if tensor.stacked else None
        wanted = theirs.read() if wanted is None else wanted
        assert bool(mx.array_equal(ours.astype(theirs.dtype), wanted)), name


@pytest.mark.parametrize("bare", [False, True])
def test_any_piece_of_a_split_set_will_do(bare: bool, tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tensors_of(config, random_weights(config))
    size = 12 if bare else 9
    file = tmp_path / "a.gguf"
    write_gguf(file, config, tensors, Type.F16, per_piece=size, bare_first=bare)
    pieces = sorted(tmp_path.glob("a-*.gguf"))
    assert [piece.name for piece in pieces] == [f"a-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for i, piece in enumerate(pieces):
        source = read_gguf(piece)
        assert source.files == tuple(pieces[1:] if bare else pieces)
        is_checkpoint(source, tmp_path / f"hf{i}", config, "F16")
    pieces[1].rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(ModelError, match=r"a-00002-of-00003.gguf is missing; fetch all 3"):
        read_gguf(pieces[2])
    with pytest.raises(ModelError, match="is one of 3 pieces, but is not named so"):
        read_gguf(tmp_path / "elsewhere.gguf")
    pieces[1].write_bytes(pieces[2].read_bytes())
    with pytest.raises(ModelError, match="is not piece 2 of 3"):
        read_gguf(pieces[0])


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q5_K, Type.Q8_0], ids=lambda kind: kind.name)
def test_codes_of_a_model(kind: Type, stacked: bool, tmp_path: Path) -> None:
    """q and k come out in the other order; experts each with their own rows."""
    tensors = tensors_of(MIXTRAL, random_weights(MIXTRAL), stacked=stacked)
    stored = write_gguf(tmp_path / "a.gguf", MIXTRAL, tensors, kind)
    values = {n: gguf.quants.dequantize(blocks, k) for n, (k, blocks) in stored.items()}
    source = read_gguf(tmp_path / "a.gguf")
    layer = "model.layers.0"
    heads = {"q": MIXTRAL.num_attention_heads, "k": MIXTRAL.num_key_value_heads}
    for name in "qkvo":
        rows = values[f"blk.0.attn_{'output' if name == 'o' else name}.weight"]
        if name in heads:
            pairs = rows.reshape(heads[name], -1, 2, rows.shape[-1])
            rows = np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1).reshape(rows.shape)
        holds(source, f"{layer}.self_attn.{name}_proj.weight", [rows], kind)
    for name in ("gate", "up", "down"):
        rows = values[f"blk.0.ffn_{name}_exps.weight"] if stacked else [
            values[f"blk.0.ffn_{name}.{e}.weight"] for e in range(2)
        ]  # fmt: skip
        holds(source, f"{layer}.block_sparse_moe.switch_mlp.{name}_proj.weight", rows, kind)


def holds(source: Source, name: str, matrices: Any, kind: Type) -> None:
    tensor = source.tensors[name]
    assert tensor.exact
    assert tensor.spec == KINDS[kind].spec
    for part, values in zip(tensor.parts, matrices, strict=True):
        assert same(part.read(), mx.array(np.asarray(values).astype(np.float16)))
        ours = mx.dequantize(*part.codes(), group_size=32, bits=part.spec.bits)
        assert np.allclose(as_numpy(ours), values, rtol=0, atol=2e-3 * np.abs(values).max())


def test_types_mix_within_a_file_and_within_a_stack(tmp_path: Path) -> None:
    def kind(name: str) -> Type:
        if "ffn_up.1" in name:
            return Type.Q6_K
        return Type.Q4_K if "ffn" in name else Type.Q8_0

    tensors = tensors_of(MIXTRAL, random_weights(MIXTRAL), stacked=False)
    write_gguf(tmp_path / "a.gguf", MIXTRAL, tensors, kind, metadata={"general.file_type": 15})
    source = read_gguf(tmp_path / "a.gguf")
    moe = "model.layers.0.block_sparse_moe"
    assert source.tensors[f"{moe}.switch_mlp.gate_proj.weight"].exact
    mixed = source.tensors[f"{moe}.switch_mlp.up_proj.weight"]
    assert not mixed.exact
    assert mixed.spec == QuantSpec(8, 64)
    assert source.tensors[f"{moe}.gate.weight"].spec is None
    assert source.tensors["lm_head.weight"].spec == QuantSpec(8, 32)
    assert source.form == "GGUF, Q4_K_M"
    rounded, *others, tokenizer = source.notes
    assert rounded.startswith("Q4_K and Q5_K (4 matrices) keep their codes")
    assert others == [
        "Q4_K (1 matrices) is requantized at 8 bits: other experts need it",
        "Q6_K (1 matrices) is requantized at 8 bits: MLX has no format for them",
    ]
    assert tokenizer.startswith("no tokenizer was made")


# --- what the metadata says


def test_the_configuration(tmp_path: Path) -> None:
    """Old files lack most keys: what llama.cpp takes for them holds."""
    config = tiny_config(max_position_embeddings=32768, head_dim=16)
    tensors = tensors_of(config, random_weights(config))
    absent = ("attention.key_length", "rope.dimension_count", "rope.freq_base",
              "attention.head_count_kv")  # fmt: skip
    metadata: dict[str, Any] = {f"llama.{key}": None for key in absent}
    metadata |= {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.eos_token_id": None}
    with pytest.raises(ModelError, match=r"attn_k.weight has shape"):
        read_gguf(written(tmp_path, config, tensors, metadata))
    del metadata["llama.attention.head_count_kv"]
    metadata |= {"tokenizer.ggml.eot_token_id": 7, "llama.vocab_size": 95}
    found = read_gguf(written(tmp_path, config, tensors, metadata)).config
    assert (found.rope_theta, found.head_dim, found.vocab_size) == (1e4, 16, 96)
    assert (found.bos_token_id, found.eos_token_ids) == (1, (2, 7))
    assert found.rms_norm_eps == 1e-5


def test_a_window_is_for_dense_models(tmp_path: Path) -> None:
    for config, window in ((MISTRAL, 64), (tiny_config(), None)):
        tensors = tensors_of(config, random_weights(config))
        file = written(tmp_path, config, tensors, {"llama.attention.sliding_window": 64})
        assert read_gguf(file).config.sliding_window == window


def written(folder: Path, config: ModelConfig, tensors: Any, metadata: dict[str, Any]) -> Path:
    write_gguf(folder / "a.gguf", config, tensors, Type.F16, metadata=metadata)
    return folder / "a.gguf"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "gemma"}, "architecture is 'gemma'; this program runs Mixtral"),
        ({"llama.rope.scaling.type": "yarn"}, "RoPE scaling 'yarn' is not supported"),
        ({"llama.rope.scaling.factor": 4.0}, "RoPE scaling 'linear' is not supported"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count is 8 where heads have 16"),
        ({"llama.attention.value_length": 8}, "value_length is 8 where heads have 16"),
        ({"llama.embedding_length": "x"}, "embedding_length is 'x', not an integer"),
        ({"llama.block_count": None}, "has no llama.block_count"),
        ({"llama.block_count": 3}, "layers.2.input_layernorm is missing"),
        ({"llama.block_count": 1}, "blk.1.[a-z_.]+ has no place"),
        ({"llama.feed_forward_length": 1 << 31}, "intermediate_size is 2147483648"),
        ({"llama.expert_count": 5}, "ffn_[a-z]+_exps.weight holds 4 experts where .* is 5"),
        ({"llama.expert_count": None}, "holds 4 experts where llama.expert_count is 0"),
        ({"llama.rope.freq_base": -1.0}, "freq_base is -1.0, not a positive number"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "not a positive number"),
        ({"tokenizer.ggml.eos_token_id": 96}, "96 is no token of 96"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tensors_of(config, random_weights(config))
    with pytest.raises(ModelError, match=message):
        read_gguf(written(tmp_path, config, tensors, metadata))


def test_rope_factors_have_to_be_ones(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tensors_of(config, random_weights(config))
    tensors["rope_freqs.weight"] = np.ones(8, np.float32)
    assert read_gguf(written(tmp_path, config, tensors, {})).tensors
    tensors["rope_freqs.weight"][3] = 4
    with pytest.raises(ModelError, match=r"rope_freqs.weight scales RoPE's frequencies"):
        read_gguf(written(tmp_path, config, tensors, {}))
    tensors["rope_freqs.weight"] = np.ones(9, np.float32)
    with pytest.raises(ModelError, match=r"rope_freqs.weight has no place"):
        read_gguf(written(tmp_path, config, tensors, {}))


def test_biases_and_other_strangers_are_named(tmp_path: Path) -> None:
    tensors = tensors_of(MISTRAL, random_weights(MISTRAL))
    tensors["blk.0.attn_q.bias"] = np.zeros(64, np.float32)
    with pytest.raises(ModelError, match=r"blk.0.attn_q.bias has no place in this model"):
        read_gguf(written(tmp_path, MISTRAL, tensors, {}))


# --- headers


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    head = string(name) + struct.pack("<I", len(shape))
    return head + struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)


def file_of(
    entries: Sequence[bytes] = (), tensors: Sequence[bytes] = (), data: int = 0, version: int = 3
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    head += b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


def test_headers_are_read_as_the_package_reads_them(tmp_path: Path) -> None:
    """Every type of value, arrays that are passed over, and a different alignment."""
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_custom_alignment(128)
    numbers = {"uint8": 200, "int8": -3, "uint16": 60000, "int16": -9, "uint32": 1 << 31,
               "int32": -(1 << 30), "uint64": 1 << 63, "int64": -(1 << 60)}  # fmt: skip
    for kind, number in numbers.items():
        getattr(writer, f"add_{kind}")(f"a.{kind}", number)
    writer.add_float32("a.float32", 0.1)
    writer.add_float64("a.float64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "é\n")
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.strings", ["x", "yy"])
    writer.add_token_list(["a", "", "ß"])
    writer.add_token_scores([0.5, -1.0, 2.0])
    writer.add_tensor("one", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("two", np.ones(5, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header, theirs = read_header(tmp_path / "a.gguf"), gguf.GGUFReader(tmp_path / "a.gguf")
    for kind, number in numbers.items():
        assert header.integer(f"a.{kind}") == number
    assert header.metadata["a.float32"] == header.metadata["a.float64"] == 0.1
    assert header.metadata["a.bool"] is True
    assert header.text("a.string") == "é\n"
    assert header.metadata["a.numbers"] is header.metadata["a.strings"] is None
    assert header.metadata["tokenizer.ggml.tokens"] == ["a", "", "ß"]
    assert list(header.metadata["tokenizer.ggml.scores"]) == [0.5, -1.0, 2.0]
    assert [t.name for t in header.tensors] == [t.name for t in theirs.tensors]
    for ours, other in zip(header.tensors, theirs.tensors, strict=True):
        assert ours.shape == tuple(int(n) for n in other.shape[::-1])
        assert (ours.offset, ours.nbytes) == (other.data_offset, other.n_bytes)


HUGE = struct.pack("<Q", 1 << 62)
ONE = tensor("a", (32,), 0, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a GGUF file"),
        (b"GGU", "is not a GGUF file"),
        (b"GGML" + bytes(100), "is not a GGUF file"),
        (file_of(version=1), "of version 1; only 2 and 3"),
        (file_of(version=4), "of version 4; only 2 and 3"),
        (file_of(version=3 << 24), "is a big-endian GGUF file"),
        (b"GGUF" + struct.pack("<I", 3) + HUGE + HUGE, "counts 4,611,686,018,427,387,904"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 65536), "runs on past its end"),
        (file_of([HUGE + b"abc"]), "runs on past its end"),
        (file_of([entry("k", 8, HUGE)]), "runs on past its end"),
        (file_of([entry("k", 9, struct.pack("<I", 0) + HUGE)]), "counts 4,611"),
        (file_of([entry("k", 9, struct.pack("<IQ", 12, 1 << 20))]), "runs on past its end"),
        (file_of([entry("k", 9, struct.pack("<IQ", 9, 1))]), "a value is of type 9"),
        (file_of([entry("k", 13, b"")]), "a value is of type 13"),
        (file_of([entry("k", 0, b"a"), entry("k", 0, b"a")]), "k is there twice"),
        (file_of([entry("", 0, b"a")]), "'' is no name"),
        (file_of([entry("a\nb", 0, b"a")]), r"'a\\nb' is no name"),
        (file_of([entry("general.alignment", 4, bytes(4))], [ONE]), "general.alignment is 0"),
        (file_of([], [ONE, ONE], 256), "tensor a is there twice"),
        (file_of([], [ONE, tensor("b", (8,), 0, 64)], 256), "tensor b begins within another"),
        (file_of([], [tensor("a", (32,), 0, 1 << 60)], 256), "promises 1,152,921,504,606"),
        (file_of([], [ONE], 100), "bytes where its header promises"),
        (file_of([], [tensor("a", (1 << 40, 1 << 40), 0, 0)], 100), "header promises"),
        (file_of([], [tensor("a", (33,), 2, 0)], 100), r"cannot be Q4_0 of shape \[33\]"),
        (file_of([], [tensor("a", (32, 0), 2, 0)], 100), r"cannot be Q4_0 of shape \[0, 32\]"),
        (file_of([], [tensor("a", (), 0, 0)], 100), r"cannot be F32 of shape \[\]"),
        (file_of([], [tensor("a", (1,) * 5, 0, 0)], 100), "counts 5 where 4"),
        (file_of([], [tensor("a", (32,), 9, 0)], 100), "tensor a is of type Q8_1"),
        (file_of([], [tensor("a", (32,), 99, 0)], 100), "tensor a is of type 99"),
    ],
)  # fmt: skip
def test_damaged_headers(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=message) as error:
        read_gguf(tmp_path / "a.gguf")
    assert "\n" not in str(error.value)


def test_headers_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "LONGEST_HEADER", 1000)
    (tmp_path / "a.gguf").write_bytes(file_of([entry("k", 8, string("x" * 2000))]))
    with pytest.raises(ModelError, match="runs on past its end"):
        read_gguf(tmp_path / "a.gguf")


def test_there_has_to_be_a_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(UsageError, match="is not a file"):
            read_gguf(path)


def test_version_2_and_big_endian_files_of_the_package(tmp_path: Path) -> None:
    tensors = tensors_of(MISTRAL, random_weights(MISTRAL))
    file = written(tmp_path, MISTRAL, tensors, {})
    data = file.read_bytes()
    file.write_bytes(b"GGUF" + struct.pack("<I", 2) + data[8:])
    assert read_gguf(file).config == MISTRAL
    writer = gguf.GGUFWriter(file, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="is a big-endian GGUF file"):
        read_gguf(file)


# --- tokenizers

DATA = Path(mistral_common.__file__).parent / "data"
FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
}
MODELS = {v: SentencePieceProcessor(model_file=str(DATA / f)) for v, f in FILES.items()}
REFERENCES = [i for i in range(32768) if "[REFERENCE" in MODELS["v3"].id_to_piece(i)]

TEXTS = st.lists(
    st.one_of(
        st.text(),
        st.sampled_from([" ", "   ", "\n", "\t", "\u2581", "<s>", "</s>", "<unk>", "[INST]",
                         "[/INST]", "[control_8]", "[REFERENCE_DOC_0]", "[REFERENCE_DOC_19]", "\0",
                         "<0x0A>", "[AVAILABLE_TOOLS]", "Hello", "  the", "état", "梦", "🜚"]),
    ),
    max_size=8,
).map("".join)  # fmt: skip


def vocabulary_only(folder: Path, original: SentencePieceProcessor, **changes: Any) -> Source:
    """A model of next to no weights, with a whole vocabulary."""
    size = original.vocab_size() + len(changes.get("added", [])) + changes.pop("padding", 0)
    config = tiny_config(vocab_size=size, hidden_size=4, intermediate_size=4, head_dim=2,
                         num_hidden_layers=1, num_attention_heads=2, num_local_experts=0,
                         tie_word_embeddings=True, **changes.pop("config", {}))  # fmt: skip
    metadata = changes.pop("metadata", {})
    tensors = tensors_of(config, random_weights(config))
    add = vocabulary_of(original, **changes)
    write_gguf(folder / "a.gguf", config, tensors, metadata=metadata, vocabulary=add)
    return read_gguf(folder / "a.gguf")


def made(folder: Path, source: Source) -> Path:
    """The new folder, as far as the tokenizer is concerned."""
    for name, content in source.made.items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps(source.config.to_hf()))
    return folder


def as_transformers_names_them(model: SentencePieceProcessor) -> dict[str, Any]:
    """What becomes of types and scores where tokenizer_config.json lists special tokens."""
    special = [i for i in range(model.vocab_size()) if model.is_control(i) or i == 0]
    special += [i for i in REFERENCES if i < model.vocab_size() and special[-1] > 3]
    return {"types": dict.fromkeys(special, 3), "scores": dict.fromkeys(special, -1000.0)}


def without_scores(model: SentencePieceProcessor) -> dict[str, Any]:
    """Converters that read tokenizer.json know neither scores nor which pieces are control."""
    ids = range(model.vocab_size())
    types = {i: 1 for i in ids if not model.is_byte(i)} | dict.fromkeys(range(3), 3)
    return {"types": types, "scores": dict.fromkeys(ids, -1000.0)}


CONVERTERS: dict[str, Callable[[SentencePieceProcessor], dict[str, Any]]] = {
    "sentencepiece": lambda model: {},
    "transformers": as_transformers_names_them,
    "scoreless": without_scores,
}


@pytest.fixture(scope="module", params=[(v, c) for v in FILES for c in CONVERTERS], ids="-".join)
def rebuilt(request: Any, tmp_path_factory: Any) -> tuple[str, SentencePieceProcessor]:
    version, converter = request.param
    model, folder = MODELS[version], tmp_path_factory.mktemp("vocabulary")
    source = vocabulary_only(folder, model, **CONVERTERS[converter](model))
    assert ("scores" in " ".join(source.notes)) == (converter == "scoreless")
    return version, SentencePieceProcessor(model_proto=source.made["tokenizer.model"])


def test_pieces_scores_and_kinds_are_the_originals(
    rebuilt: tuple[str, SentencePieceProcessor],
) -> None:
    version, ours = rebuilt
    theirs, ids = MODELS[version], list(range(ours.vocab_size()))
    assert ours.vocab_size() == theirs.vocab_size()
    assert ours.id_to_piece(ids) == theirs.id_to_piece(ids)
    for kind in ("is_control", "is_byte", "is_unknown", "is_unused"):
        assert getattr(ours, kind)(ids) == getattr(theirs, kind)(ids), kind
    ordinary = [i for i in ids if i > ids[-1] - 31741]
    assert ours.get_score(ordinary) == theirs.get_score(ordinary)
    assert (ours.bos_id(), ours.eos_id(), ours.unk_id(), ours.pad_id()) == (1, 2, 0, -1)


@pytest.mark.fuzz
@given(text=TEXTS)
@example(text="[REFERENCE_DOC_3] </s>[INST]  a\n")
def test_rebuilt_tokenizers_give_the_same_ids(
    rebuilt: tuple[str, SentencePieceProcessor], text: str
) -> None:
    version, ours = rebuilt
    ids = ours.encode(text)
    assert ids == MODELS[version].encode(text)
    assert ours.decode(ids) == MODELS[version].decode(ids)


@pytest.mark.parametrize("version", FILES)
def test_chat_works_as_with_the_original(version: str, tmp_path: Path) -> None:
    """With an [INST] template of the converter's, and with none (2023)."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "tokenizer.model").write_bytes((DATA / FILES[version]).read_bytes())
    theirs = Tokenizer.from_folder(tmp_path / "theirs")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi [/INST] there </s>"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "  Why?\n"},
    ]
    expected = template_for(theirs, tmp_path / "theirs").encode(messages)
    for template in ("{{ bos_token }}{% for m in messages %}[INST] {{ m.content }}", None):
        source = vocabulary_only(tmp_path, MODELS[version], template=template)
        folder = tmp_path / f"ours-{bool(template)}"
        folder.mkdir()
        ours = Tokenizer.from_folder(made(folder, source))
        assert ours.version == version
        assert ours.controls == theirs.controls
        assert ours.stop_ids == theirs.stop_ids
        assert template_for(ours, folder).encode(messages) == expected
        text = (folder / "chat_template.jinja").read_text() if template else None
        assert text == template


@pytest.mark.parametrize("kind", [3, 4])
def test_added_tokens_stay_added(kind: int, tmp_path: Path) -> None:
    """As pieces, user-defined ones would be found in typed text. Padding is no token."""
    added = [("<|im_end|>", kind), ("<|im_start|>", kind), ("[PAD32002]", 5)]
    source = vocabulary_only(tmp_path, MODELS["v1"], added=added, padding=30,
                             config={"eos_token_ids": (32000,)})  # fmt: skip
    tokenizer = Tokenizer.from_folder(made(tmp_path, source))
    assert tokenizer.added == {"<|im_end|>": 32000, "<|im_start|>": 32001}
    assert tokenizer.vocab_size == 32002
    assert tokenizer.eos_id == 32000
    settings = json.loads(source.made["tokenizer_config.json"])
    assert (settings["eos_token"], settings["add_bos_token"]) == ("<|im_end|>", True)
    assert settings["added_tokens_decoder"]["32001"]["special"] == (kind == 3)
    typed = "<|im_start|>user\n<|im_end|>"
    assert tokenizer.encode(typed) == MODELS["v1"].encode(typed)
    template = template_for(tokenizer, tmp_path)
    assert template.name == "chatml"
    assert 32001 in template.encode([{"role": "user", "content": "Hi"}])


def test_a_template_for_tools_comes_along(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    source = vocabulary_only(tmp_path, MODELS["v1"], template=templates)
    config = json.loads(source.made["tokenizer_config.json"])
    assert config["chat_template"] == templates
    assert "chat_template.jinja" not in source.made
    source = vocabulary_only(tmp_path, MODELS["v1"], template="x" * (300 << 10))
    assert "chat_template.jinja" not in source.made
    assert source.notes == ("its chat template was left out: it is no text of sensible size",)


def test_spaces_before_the_text(tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.add_space_prefix": False}
    source = vocabulary_only(tmp_path, MODELS["v1"], metadata=metadata)
    tokenizer = SentencePieceProcessor(model_proto=source.made["tokenizer.model"])
    assert tokenizer.encode_as_pieces("Hello") == ["Hello"]
    assert MODELS["v1"].encode_as_pieces("Hello") == ["▁Hello"]


def test_vocabularies_that_cannot_be_put_together(tmp_path: Path) -> None:
    """The model is read; the tokenizer has to come from elsewhere."""
    model = MODELS["v1"]
    for changes, why in [
        ({"model": "gpt2"}, "of kind 'gpt2', not SentencePiece's"),
        ({"types": dict.fromkeys(range(3, 259), 1)}, "lacks <unk>, <s>, </s> or byte pieces"),
        ({"types": {40: 1}}, "SentencePiece refuses"),
    ]:
        source = vocabulary_only(tmp_path, model, **changes)
        assert "tokenizer.model" not in source.made
        assert [why in note for note in source.notes] == [True]
    scoreless = without_scores(model) | {"types": {260: 4, 259: 4}}
    [note] = vocabulary_only(tmp_path, model, **scoreless).notes
    assert "scores of its tokens are lost" in note


def test_damaged_vocabularies(tmp_path: Path) -> None:
    model = MODELS["v1"]
    for changes, why in [
        ({"padding": -1}, "32,000 scores, 32,000 types and 31,999 embeddings do not fit"),
        ({"scores": {300: float("nan")}}, "score is no number"),
        ({"types": {300: 9}}, "is of no known type"),
    ]:
        with pytest.raises(ModelError, match=why):
            vocabulary_only(tmp_path, model, **changes)
    file = tmp_path / "a.gguf"
    vocabulary_only(tmp_path, model)
    file.write_bytes(file.read_bytes().replace("▁state".encode(), b"\xff\xfe\xfdstate"))
    with pytest.raises(ModelError, match="a token is not UTF-8"):
        read_gguf(file)


# --- damage of any kind


def whole_file(file: Path) -> Path:
    """A model with several types and a small vocabulary: 300 pieces, 256 of them bytes."""
    letters = [chr(i) for i in range(97, 123)]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, "▁"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * 27]

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list([piece.encode() for piece in pieces])
        writer.add_token_scores([-float(i) for i in range(len(pieces))])
        writer.add_token_types(kinds)
        writer.add_chat_template("[INST]")

    types = {"attn_q": Type.Q4_K, "attn_k": Type.Q5_0, "attn_v": Type.Q6_K, "gate": Type.F16,
             "up": Type.MXFP4, "down": Type.IQ4_XS, "token": Type.Q8_0}  # fmt: skip
    config = ModelConfig(**{**vars(MIXTRAL), "vocab_size": 300, "tie_word_embeddings": True})
    weights = random_weights(config)
    tensors = tensors_of(config, weights) | {"rope_freqs.weight": np.ones(64, np.float32)}

    def kind(name: str) -> Type:
        return next((kind for part, kind in types.items() if part in name), Type.Q4_1)

    write_gguf(file, config, tensors, kind, vocabulary=add)
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> Path:
    return whole_file(tmp_path_factory.mktemp("whole") / "whole.gguf")


def try_all(file: Path) -> str:
    """Read everything; only errors meant for people may come out. Returns the one line, if any."""
    try:
        source = read_gguf(file)
        for tensor in source.tensors.values():
            for part in tensor.parts:
                mx.eval(part.read(), *(part.codes() if part.exact else ()))
    except MixtralError as error:
        return str(error)
    return ""


NUMBERS = st.sampled_from([0, 1, 2, 31, 255, 1 << 16, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 40,
                           1 << 62, (1 << 63) + 1, (1 << 64) - 1])  # fmt: skip
HEADER = 8000  # where most of what can go wrong lies
EDITS = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, HEADER), st.integers(0, 7)),
    st.tuples(st.just("u32"), st.integers(0, HEADER), NUMBERS),
    st.tuples(st.just("u64"), st.integers(0, HEADER), NUMBERS),
    st.tuples(st.just("cut"), st.integers(0, HEADER), st.integers(1, 64)),
    st.tuples(st.just("double"), st.integers(0, HEADER), st.integers(1, 64)),
    st.tuples(st.just("data"), st.integers(HEADER, 1 << 20), st.integers(0, 255)),
    st.tuples(st.just("end"), st.integers(0, 1 << 20), st.just(0)),
)


def edited(data: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    out = bytearray(data)
    for what, at, value in edits:
        at %= max(len(out) - 8, 1)
        out += bytes(max(0, 8 - len(out)))
        if what == "flip":
            out[at] ^= 1 << value
        elif what == "data":
            out[at] = value
        elif what == "u32":
            out[at : at + 4] = struct.pack("<I", value & 0xFFFFFFFF)
        elif what == "u64":
            out[at : at + 8] = struct.pack("<Q", value)
        elif what == "cut":
            del out[at : at + value]
        elif what == "double":
            out[at:at] = out[at : at + value]
        else:
            del out[at:]
    return bytes(out)


@pytest.mark.fuzz
@given(edits=st.lists(EDITS, min_size=1, max_size=4))
def test_no_bytes_bring_anything_but_an_error_for_people(
    whole: Path, edits: list[tuple[str, int, int]]
) -> None:
    file = whole.with_name("a.gguf")
    file.write_bytes(edited(whole.read_bytes(), edits))
    assert "\n" not in try_all(file)


def test_the_file_that_is_mutated_is_sound(whole: Path) -> None:
    assert try_all(whole) == ""
    assert {"tokenizer.model", "chat_template.jinja"} <= read_gguf(whole).made.keys()
