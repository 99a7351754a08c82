"""Bytes a token against counts by hand, and the arithmetic of the ceiling."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from checkpoints import quantization, tiny_config, write_mlx
from mlx.utils import tree_flatten

from mlx_mixtral import memory
from mlx_mixtral.config import ModelConfig
from mlx_mixtral.errors import UsageError
from mlx_mixtral.generation.prompt_cache import make_caches
from mlx_mixtral.lab import choice, roofline, shapes
from mlx_mixtral.lab.opponents import mlx_lm, opponent_dtype
from mlx_mixtral.lab.roofline import (
    Bandwidth,
    Traffic,
    kv_bytes_per_token,
    measure_bandwidth,
    traffic,
)
from mlx_mixtral.lab.shapes import SHAPES, needed_bytes, random_model, shape_config, weight_bytes
from mlx_mixtral.loading import load_model

pytestmark = pytest.mark.usefixtures("kept_packed")

# tiny_config: D = F = 64, V = 96, 2 layers, 4 heads and 2 KV heads of 16, 4 experts of which
# 2 answer. On the CPU a float is 4 bytes; of the norms there are 2 a layer and the last.
NORMS = 4 * 64 * (2 * 2 + 1)
ROUTERS = 4 * 2 * (4 * 64)
ATTENTION = 2 * (64 * 64 + 32 * 64 + 32 * 64 + 64 * 64)  # weights of q, k, v and o
MATRICES = 2 * 3 * 64 * 64  # of one expert, or of the dense network
HEAD = 96 * 64
KV = 4 * 2 * 2 * 2 * 16  # float32, keys and values, 2 layers of 2 heads of 16


def quantized(weights: int) -> int:
    """Bytes of so many weights at 4 bits, 32 to a float32 scale and bias."""
    return weights // 2 + weights // 32 * 8


FOUR_BITS = {"quantization": quantization(4, 32)}


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({}, (NORMS + ROUTERS + 4 * (ATTENTION + HEAD), 4 * 2 * MATRICES, 4 * 64)),
        (
            {"num_local_experts": 0},
            (NORMS + 4 * (ATTENTION + MATRICES + HEAD), 0, 4 * 64),
        ),
        (
            {"tie_word_embeddings": True},
            (NORMS + ROUTERS + 4 * (ATTENTION + HEAD), 4 * 2 * MATRICES, 4 * 64),
        ),
        (
            FOUR_BITS,
            (
                NORMS + ROUTERS + quantized(ATTENTION) + quantized(HEAD),
                2 * quantized(MATRICES),
                quantized(64),
            ),
        ),
    ],
    ids=["moe 16 bit", "dense", "tied", "moe 4 bit"],
)
def test_bytes_a_token(
    changes: dict[str, object], want: tuple[int, int, int], tmp_path: Path
) -> None:
    config = tiny_config(**changes)
    folder = write_mlx(tmp_path, config, quantized=is_packed)
    model = load_model(folder, config, mx.float32)
    caches = make_caches(config)
    mx.eval(model(mx.array([[3, 4, 5]]), caches))

    per_token = kv_bytes_per_token(caches)
    assert per_token == KV
    found = traffic(model, config, per_token, 10)
    assert found == Traffic(*want, kv=10 * KV, context=10)
    assert found.total == sum(want) + 10 * KV


def is_packed(path: str) -> bool:
    return "norm" not in path and not path.endswith("block_sparse_moe.gate")


def test_a_window_reads_no_more_than_itself() -> None:
    config = tiny_config(sliding_window=8)
    model = random_model(config)
    assert traffic(model, config, 100.0, 5).kv == 500
    assert traffic(model, config, 100.0, 50).kv == 800


def test_the_probe_and_the_ceiling() -> None:
    found = measure_bandwidth(1 << 26, repeat=2)
    assert found.probe_bytes == 1 << 26
    assert 1e8 < found.read < 1e14
    assert 1e8 < found.copy < 1e14
    assert Bandwidth(3e9, 5e9, 1).best == 5e9
    assert Bandwidth(7e9, 5e9, 1).best == 7e9


def test_the_probe_is_bounded_by_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "free_memory", lambda: 2**29)
    assert measure_bandwidth(repeat=1).probe_bytes == 2**27
    monkeypatch.undo()
    assert 0 < memory.free_memory() <= memory.total_memory()


def test_the_published_shapes_have_their_published_sizes() -> None:
    def gigabytes(shape: str, bits: int) -> float:
        return weight_bytes(shape_config(shape, bits, 64), mx.bfloat16) / 1e9

    assert gigabytes("8x7b", 16) == pytest.approx(93.4, abs=0.05)
    assert gigabytes("8x7b", 4) == pytest.approx(26.3, abs=0.05)
    assert gigabytes("8x22b", 4) == pytest.approx(79.1, abs=0.1)
    assert gigabytes("7b", 4) == pytest.approx(4.1, abs=0.05)


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
@pytest.mark.parametrize("experts", [4, 0])
def test_a_random_model_is_what_loading_would_make(bits: int, experts: int, tmp_path: Path) -> None:
    recipe = {} if bits == 16 else {"quantization": quantization(bits, 32)}
    config = tiny_config(num_local_experts=experts, **recipe)
    model = random_model(config)
    folder = write_mlx(tmp_path, config, quantized=is_packed)
    loaded = load_model(folder, config)

    def forms(of: object) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
        return {n: (a.shape, a.dtype) for n, a in tree_flatten(of.parameters())}

    assert forms(model) == forms(loaded)
    assert sum(a.nbytes for _, a in tree_flatten(model.parameters())) == weight_bytes(
        config, loaded.model.norm.weight.dtype
    )
    logits = model(mx.array([[3, 4, 5, 6]]))
    assert mx.isfinite(logits).all()
    assert 0.1 < logits.std() < 10


def test_what_does_not_fit_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "free_memory", lambda: 10**10)
    config = shape_config("8x7b", 4, 64)
    with pytest.raises(UsageError, match=r"needs \d+\.\d GB.*10\.0 GB can be used") as caught:
        shapes.check_memory(config, "8x7b at 4 bits", 128, 64)
    layers = int(str(caught.value).partition("--layers ")[2].split()[0])
    dtype = shapes.activation_dtype(mx.bfloat16)
    fits = [
        needed_bytes(shape_config("8x7b", 4, 64, n), dtype, 128, 64) <= 10**10
        for n in (layers, layers + 1)
    ]
    assert fits == [True, False]
    shapes.check_memory(shape_config("8x7b", 4, 64, layers), "8x7b", 128, 64)
    monkeypatch.setattr(shapes, "free_memory", lambda: 10**6)
    with pytest.raises(UsageError, match="not even one layer fits"):
        shapes.check_memory(config, "8x7b at 4 bits", 128, 64)


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("experts", [4, 0])
@pytest.mark.parametrize("name", ["mlx-lm", "mlx-lm-f32"])
def test_an_opponents_copies_are_counted(bits: int, experts: int, name: str) -> None:
    recipe = {} if bits == 16 else {"quantization": quantization(bits, 32)}
    large = {"hidden_size": 512, "head_dim": 128, "intermediate_size": 1024}  # no copy is spared
    config = tiny_config(num_local_experts=experts, **large, **recipe)
    config = replace(config, quantization=shape_config("7b", bits, 32).quantization)
    model = random_model(config)
    mx.eval(model.parameters())
    gc.collect()
    before = mx.get_active_memory()
    side = mlx_lm(name, None, config, model)
    gc.collect()
    copied = mx.get_active_memory() - before
    del side
    dtype = shapes.activation_dtype(mx.bfloat16)
    counted = shapes._copied_bytes(config, dtype, opponent_dtype(name))
    assert copied == pytest.approx(counted, rel=0.05, abs=20_000)
    alone, beside = (needed_bytes(config, dtype, 8, 2, names) for names in ((), (name,)))
    assert beside > alone + counted


def test_what_fits_only_alone_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    config = shape_config("8x7b", 4, 64)
    alone = needed_bytes(config, shapes.activation_dtype(mx.bfloat16), 128, 64)
    monkeypatch.setattr(shapes, "free_memory", lambda: alone + 10**9)
    shapes.check_memory(config, "8x7b", 128, 64)
    with pytest.raises(UsageError, match=r"beside mlx-lm.*fewer --bits, without --against, or"):
        shapes.check_memory(config, "8x7b", 128, 64, ("mlx-lm",))
    monkeypatch.setattr(shapes, "free_memory", lambda: alone - 1)
    with pytest.raises(UsageError, match=r"beside mlx-lm.*fewer --bits, or"):
        shapes.check_memory(config, "8x7b", 128, 64, ("mlx-lm",))


def test_what_make_bench_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "on_gpu", lambda: False)
    assert choice.arguments() == choice.DEMO
    monkeypatch.setattr(choice, "on_gpu", lambda: True)
    monkeypatch.setattr(choice, "free_memory", lambda: 36 * 10**9)
    assert choice.arguments() == choice.DEMO
    monkeypatch.setattr(choice, "free_memory", lambda: 64 * 10**9)
    assert choice.arguments() == choice.FULL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("8x8b", 4, 64), "8x7b, 8x22b, 7b"),
        (("7b", 7, 64), "2, 3, 4, 5, 6, 8, 16"),
        (("7b", 4, 65), "32, 64, 128"),
        (("7b", 4, 64, 33), "1 to 32 layers"),
        (("7b", 4, 64, 0), "1 to 32 layers"),
    ],
)
def test_an_impossible_shape(arguments: tuple[str, int, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        shape_config(*arguments)


def test_the_shapes_are_configurations() -> None:
    assert all(isinstance(config, ModelConfig) for config in SHAPES.values())
    assert shape_config("8x22b", 16, 64, 3).num_hidden_layers == 3
