"""Two streams and BLAS: other ways to the same numbers."""

import ctypes.util
import subprocess
import sys
import threading

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from checkpoints import quantization, random_ids, tiny_config, write_hf, write_mlx

from mlx_mixtral import cpu
from mlx_mixtral.config import read_config
from mlx_mixtral.cpu import Halved, SpreadExperts, fit_to_cpu
from mlx_mixtral.experts.resident import ResidentExperts
from mlx_mixtral.loading import load_model
from mlx_mixtral.network import arrays

CONFIG = tiny_config(hidden_size=128, intermediate_size=192, num_local_experts=4)
SPECS = {"16 bit": None, "4 bit": (64, 4, "affine"), "3 bit": (32, 3, "affine"),
         "mxfp4": (32, 4, "mxfp4")}  # fmt: skip


@pytest.fixture(autouse=True)
def everything_is_wide(monkeypatch):
    monkeypatch.setattr(cpu, "WIDE", 0)
    monkeypatch.setattr(cpu, "WIDE_PLAIN", 0)
    monkeypatch.setattr(cpu, "UNPACKED_AT_MOST", -1)


@pytest.fixture(params=[False, True], ids=["without BLAS", "with BLAS"])
def blas(request, monkeypatch):
    monkeypatch.setattr(cpu, "use_system_blas", lambda: request.param)
    return request.param


@pytest.fixture(params=SPECS)
def experts(request):
    """The same weights in both: (on one stream, on two)."""
    mx.random.seed(1)
    one, two = ResidentExperts(CONFIG), SpreadExperts(CONFIG)
    for name in ("gate_up_proj", "down_proj"):
        weight = mx.random.normal(one[name].weight.shape) * weight_scale(one[name])
        for both in (one, two):
            if spec := SPECS[request.param]:
                both[name] = both[name].to_quantized(*spec)
                group, bits, mode = spec
                packed = mx.quantize(weight, group, bits, mode)
                both[name].update(dict(zip(("weight", "scales", "biases"), packed, strict=False)))
            else:
                both[name].weight = weight
    return one, two


def weight_scale(linear):
    return linear.weight.shape[-1] ** -0.5


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 40, 64, 65, 200])
def test_experts_answer_the_same(experts, blas, tokens, k):
    one, two = experts
    rng = np.random.default_rng(tokens)
    x = mx.array(rng.standard_normal((tokens, 128), np.float32))
    # Not all experts are chosen equally often, and some not at all.
    indices = mx.array(np.stack([rng.permutation(3)[:k] for _ in range(tokens)]).astype(np.uint32))
    wanted, found = one(x, indices), two(x, indices)
    assert found.shape == wanted.shape == (tokens, k, 128)
    assert mx.allclose(found, wanted, rtol=1e-5, atol=1e-5).item()


@pytest.mark.parametrize("rows", [1, 5, 31, 32, 100])
@pytest.mark.parametrize("out", [2, 7, 64])
@pytest.mark.parametrize("packed", [False, True])
def test_halves_make_the_whole(blas, rows, out, packed):
    linear = nn.Linear(64, out, bias=False)
    linear = linear.to_quantized(32, 4) if packed else linear
    x = mx.random.normal((2, rows, 64))
    assert mx.allclose(Halved(linear)(x), linear(x), rtol=1e-5, atol=1e-5).item()


def test_only_wide_matrices_are_put_in_halves(monkeypatch, blas):
    monkeypatch.setattr(cpu, "WIDE", 64 * 64)
    monkeypatch.setattr(cpu, "WIDE_PLAIN", 64 * 64)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Linear(64, 64), nn.Linear(64, 63)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [Layer()]
            self.head = nn.QuantizedLinear(64, 64, bits=4)
            self.norm = nn.RMSNorm(64)

    model = Model()
    fit_to_cpu(model)
    (layer,) = model.layers
    plain = nn.Linear if blas else Halved  # OpenBLAS itself uses all cores
    assert [type(m) for m in (layer.wide, layer.narrow, model.head)] == [plain, nn.Linear, Halved]


@pytest.mark.parametrize("kind", ["4 bit", "6 bit, tied", "mxfp4", "dense"])
def test_a_small_model_is_unpacked_and_answers_the_same(tmp_path, monkeypatch, kind):
    config = {
        "4 bit": tiny_config(quantization=quantization(4, 32)),
        "6 bit, tied": tiny_config(quantization=quantization(6, 32), tie_word_embeddings=True),
        "mxfp4": tiny_config(quantization=quantization(4, 32, "mxfp4")),
        "dense": tiny_config(quantization=quantization(4, 32), num_local_experts=0),
    }[kind]
    write_mlx(tmp_path, config)
    ids = random_ids(config, length=50)
    packed = load_model(tmp_path, config)
    monkeypatch.setattr(cpu, "UNPACKED_AT_MOST", 1 << 28)
    plain = load_model(tmp_path, config)
    assert any("scales" in name for name in arrays(packed))
    assert not any("scales" in name for name in arrays(plain))
    assert mx.allclose(plain(ids), packed(ids), rtol=1e-4, atol=1e-4).item()
    size = sum(array.nbytes for name, array in arrays(plain).items() if "norm" not in name)
    for most, kept in ((size, False), (size - 100_000, True)):
        monkeypatch.setattr(cpu, "UNPACKED_AT_MOST", most)
        assert any("scales" in name for name in arrays(load_model(tmp_path, config))) == kept


@pytest.mark.parametrize("kind", ["16 bit", "4 bit", "dense"])
def test_a_loaded_model_uses_it_and_gives_the_same(tmp_path, monkeypatch, blas, kind):
    config = tiny_config(num_local_experts=0 if kind == "dense" else 4)
    if kind == "4 bit":
        write_mlx(tmp_path, tiny_config(quantization=quantization(4, 32)))
    else:
        write_hf(tmp_path, config)
    ids = random_ids(config, length=90)
    spread_out = load_model(tmp_path, read_config(tmp_path))
    assert isinstance(spread_out.lm_head, nn.Linear if blas and kind != "4 bit" else Halved)
    found = spread_out(ids)
    monkeypatch.setattr("mlx_mixtral.network.on_cpu", lambda: False)
    wanted = load_model(tmp_path, read_config(tmp_path), mx.float32)(ids)
    assert mx.allclose(found, wanted, rtol=1e-4, atol=1e-4).item()


def test_every_thread_may_compute(tmp_path):
    model = load_model(write_hf(tmp_path, CONFIG), CONFIG)
    ids = random_ids(CONFIG)
    wanted, found = model(ids), []
    mx.eval(wanted)
    thread = threading.Thread(target=lambda: found.append(np.array(model(ids))))
    thread.start()
    thread.join()
    np.testing.assert_allclose(found[0], np.array(wanted), rtol=1e-5, atol=1e-5)


# --- BLAS


def python(program):
    return subprocess.check_output([sys.executable, "-c", program], text=True).split()


@pytest.mark.skipif(not ctypes.util.find_library("openblas"), reason="there is no OpenBLAS here")
def test_openblas_is_found_where_it_is():
    program = """
from mlx_mixtral.blas import use_system_blas
before = use_system_blas()
import mlx.core as mx
mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
maps = open("/proc/self/maps").read()
print(before, "libopenblas" in maps, use_system_blas())
"""
    assert python(program) == ["True", "True", "True"]


def test_it_is_too_late_when_mlx_is_there():
    program = "import mlx.core; from mlx_mixtral.blas import use_system_blas as b; print(b())"
    assert python(program) == ["False"]


def test_a_machine_without_it(monkeypatch):
    program = """
import mlx_mixtral.blas as blas
blas._NAME = "libno-such-thing.so.0"
print(blas.use_system_blas())
import mlx_mixtral
print(mlx_mixtral.load.__name__)
"""
    assert python(program) == ["False", "load"]
