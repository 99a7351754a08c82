"""Experts read from disk when they are chosen: the same numbers, whatever fits into memory."""

from __future__ import annotations

import gc
import os
import threading

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import encode as encoded
from checkpoints import (
    fused,
    quantization,
    random_ids,
    random_weights,
    tiny_config,
    write_config,
    write_hf,
    write_mlx,
    write_safetensors,
)

from mlx_mixtral import cpu
from mlx_mixtral.config import read_config
from mlx_mixtral.errors import ModelError
from mlx_mixtral.experts import files, streamed
from mlx_mixtral.experts.resident import ResidentExperts
from mlx_mixtral.generation.loop import generate_tokens
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler, Sampling
from mlx_mixtral.generation.speculative import Speculator
from mlx_mixtral.loading import load_model
from mlx_mixtral.network import activation_dtype, arrays
from mlx_mixtral.streaming import demand_of, streamed_network
from mlx_mixtral.weights import open_weights

EXPERTS = 4
SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3}
SWITCH = "model.layers.{}.block_sparse_moe.switch_mlp.{}_proj"
MIXED = {SWITCH.format(1, "gate"): 8, SWITCH.format(2, "down"): None}


def write_fused(folder, config):
    write_config(folder, config)
    tensors = {k: encoded(v, "BF16") for k, v in fused(random_weights(config), config).items()}
    write_safetensors(folder / "model.safetensors", tensors)


FORMS = {
    "bfloat16": lambda f: write_hf(f, tiny_config(**SHAPE), dtype="BF16", shards=3),
    "float16": lambda f: write_hf(f, tiny_config(**SHAPE), dtype="F16"),
    "32 bit": lambda f: write_hf(f, tiny_config(**SHAPE)),
    "transformers 5": lambda f: write_fused(f, tiny_config(**SHAPE)),
    "4 bit": lambda f: write_mlx(f, tiny_config(**SHAPE, quantization=quantization(4, 64))),
    "3 bit, old": lambda f: write_mlx(
        f, tiny_config(**SHAPE, quantization=quantization(3, 32)), era="B"
    ),
    "mxfp4": lambda f: write_mlx(
        f, tiny_config(**SHAPE, quantization=quantization(4, 32, "mxfp4"))
    ),
    "a bit of each": lambda f: write_mlx(
        f, tiny_config(**SHAPE, quantization=quantization(4, 64, **MIXED))
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=FORMS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    FORMS[request.param](path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small")
    write_mlx(path, tiny_config(**SHAPE, quantization=quantization(4, 64)))
    return path


@pytest.fixture(params=["as it is", "unpacked", "two streams", "two streams and BLAS"])
def way(request, monkeypatch):
    """How the CPU computes it."""
    if request.param != "unpacked":
        monkeypatch.setattr(cpu, "UNPACKED_AT_MOST", -1)
    if "two" in request.param:
        monkeypatch.setattr(cpu, "WIDE", 0)
        monkeypatch.setattr(cpu, "WIDE_PLAIN", 0)
    monkeypatch.setattr(cpu, "use_system_blas", lambda: "BLAS" in request.param)


def network(folder, slots):
    config = read_config(folder)
    tensors = open_weights(folder, config)
    dtype = activation_dtype(tensors["model.norm.weight"].dtype)
    slots = [slots] * config.num_hidden_layers if isinstance(slots, int) else slots
    return streamed_network(config, tensors, dtype, slots, read_ahead=1)


def said(model, prompt, speculate=False, count=24, **sampling):
    cache = PromptCache(model.config)
    sampler = Sampler(Sampling(**sampling), prompt)
    speculator = Speculator(prompt) if speculate else None
    steps = generate_tokens(model, cache, prompt, sampler, count, speculator=speculator)
    return [tuple(step) for step in steps]


def test_to_the_last_bit(folder, way):
    resident = load_model(folder, read_config(folder))
    texts = [random_ids(resident.config, length=n, seed=n) for n in (1, 2, 7, 40, 130, 3)]
    wanted = [resident(ids) for ids in texts]
    for slots in (1, 2, [3, 1, 4]):
        model, _ = network(folder, slots)
        for ids, logits in zip(texts, wanted, strict=True):
            assert (model(ids) == logits).all().item(), (slots, ids.shape)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3}])
@pytest.mark.parametrize("speculate", [False, True])
def test_the_same_answers(folder, slots, sampling, speculate):
    resident = load_model(folder, read_config(folder))
    model, streaming = network(folder, slots)
    prompt = random_ids(model.config, length=60)[0].tolist() * 2
    wanted = said(resident, prompt, speculate, **sampling)
    assert said(model, prompt, speculate, **sampling) == wanted
    assert streaming.stream.counters.reads > 0


def test_a_model_in_two_threads(small):
    model, _ = network(small, 2)
    ids = random_ids(model.config, length=30)
    wanted, found = model(ids), []
    mx.eval(wanted)
    thread = threading.Thread(target=lambda: found.append(np.array(model(ids))))
    thread.start()
    thread.join()
    assert (found[0] == np.array(wanted)).all()


def test_it_takes_what_was_reckoned(folder, way):
    config = read_config(folder)
    tensors = open_weights(folder, config)
    for slots in ([1, 2, 3], [4, 4, 4]):
        model, _ = network(folder, slots)
        layers = [layer.block_sparse_moe.switch_mlp for layer in model.model.layers]
        targets = [t.array.nbytes for experts in layers for t in experts.targets]
        shared = [array.nbytes for array in arrays(model).values()]
        demand = demand_of(config, tensors, mx.float32, 0)
        assert sum(targets) + sum(shared) == demand.held(slots)


def test_each_expert_once_a_chunk(small):
    model, streaming = network(small, 2)
    layers = model.config.num_hidden_layers
    for _ in range(3):
        before = streaming.stream.counters.copy()
        mx.eval(model(random_ids(model.config, length=100)))
        now = streaming.stream.counters.since(before)
        assert now.asked == EXPERTS * layers
        assert now.reads == now.asked - now.hits
    assert now.hits == 2 * layers, "what was there is used before anything replaces it"


def test_bytes_are_counted(small):
    model, streaming = network(small, 1)
    mx.eval(model(random_ids(model.config, length=100)))
    tensors = open_weights(small, model.config)
    on_disk = sum(t.nbytes for name, t in tensors.items() if "switch_mlp" in name)
    assert streaming.stream.counters.bytes == on_disk
    assert streaming.stream.counters.reading >= streaming.stream.counters.waiting * 0.5 > 0


# --- when something goes wrong


def test_a_read_error(small, monkeypatch):
    resident, (model, _) = load_model(small, read_config(small)), network(small, 2)
    ids = random_ids(model.config, length=50)
    real, broken = os.preadv, True

    def preadv(descriptor, buffers, offset):
        if broken:
            raise OSError(5, "Input/output error")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(ModelError, match=r"model.safetensors cannot be read \(Input/output"):
        mx.eval(model(ids))
    broken = False
    assert (model(ids) == resident(ids)).all().item()


@pytest.mark.parametrize("change", ["touched", "shorter", "written"])
def test_a_file_that_changes(tmp_path, change):
    write_mlx(tmp_path, tiny_config(**SHAPE, quantization=quantization(4, 64)))
    model, _ = network(tmp_path, 1)
    mx.eval(model(random_ids(model.config, length=50)))
    file = tmp_path / "model.safetensors"
    if change == "touched":
        os.utime(file)
    elif change == "shorter":
        os.truncate(file, file.stat().st_size // 2)
    else:
        with file.open("r+b") as stream:
            stream.seek(-100, os.SEEK_END)
            stream.write(b"x")
    with pytest.raises(ModelError, match=r"changed while|ended while"):
        mx.eval(model(random_ids(model.config, length=50)))


def test_a_file_replaced_by_another_goes_on(tmp_path):
    write_mlx(tmp_path, tiny_config(**SHAPE, quantization=quantization(4, 64)))
    resident, (model, _) = load_model(tmp_path, read_config(tmp_path)), network(tmp_path, 1)
    (tmp_path / "model.safetensors").rename(tmp_path / "old")
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    ids = random_ids(model.config, length=50)
    assert (model(ids) == resident(ids)).all().item()


@pytest.mark.parametrize("place", ["_wait", "_start", "_drop"])
def test_cut_short_anywhere(small, monkeypatch, place):
    """An interrupt leaves no slot that claims to hold what it does not."""
    resident, (model, _) = load_model(small, read_config(small)), network(small, 2)
    ids = random_ids(model.config, length=50)
    real, left = getattr(streamed.StreamedExperts, place), 3

    def cut(self, *args):
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(streamed.StreamedExperts, place, cut)
    with pytest.raises(KeyboardInterrupt):
        mx.eval(model(ids))
    assert (model(ids) == resident(ids)).all().item()


def test_what_is_foretold_wrongly_is_counted_and_harmless(small):
    resident, (model, streaming) = load_model(small, read_config(small)), network(small, 2)
    rng = np.random.default_rng(1)
    for layer in model.model.layers[:-1]:
        experts = layer.block_sparse_moe.switch_mlp
        following, _, most = experts.next
        noise = mx.array(rng.standard_normal((128, EXPERTS)).astype(np.float32))
        experts.next = following, lambda x, noise=noise: x @ noise, most
    prompt = random_ids(model.config, length=20)[0].tolist()
    assert said(model, prompt) == said(resident, prompt)
    assert streaming.stream.counters.wasted > 0


def test_files_are_closed(small):
    model, streaming = network(small, 1)
    (opened,) = (descriptor for descriptor, _ in streaming.stream.files._open.values())
    os.fstat(opened)
    del model, streaming
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened)


def test_a_part_is_multiplied_as_the_whole_would_be():
    """On a GPU few rows would take another kernel: a part gets as many as that one asks for."""
    config, seen = tiny_config(num_local_experts=8), []
    experts = ResidentExperts(config, 4)

    def answer(x, chosen, ordered):
        seen.append((x.shape[0], ordered))
        return x

    experts._answer = answer
    x = mx.random.normal((5, 64))
    chosen = mx.array([[3], [0], [3], [1], [0]])
    assert (experts.among(x, chosen, 40)[:, 0] == x).all()
    assert (experts.among(x, chosen, 5)[:, 0] == x).all()
    assert seen == [(16, True), (5, False)]


def test_macos_is_asked_not_to_cache(small, monkeypatch):
    asked = []
    monkeypatch.setattr(files.sys, "platform", "darwin")
    monkeypatch.setattr(files.fcntl, "fcntl", lambda *args: asked.append(args[1:]))
    network(small, 1)
    assert asked == [(48, 1)]
