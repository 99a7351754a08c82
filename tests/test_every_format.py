"""The same weights in every form that they were ever distributed in give the same model.

Each form is written by means of its own (see ``formats_*``), converted, and compared byte for
byte: files, config.json and all.
"""

from dataclasses import replace
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
from checkpoints import (
    encode,
    fused,
    random_weights,
    relative_difference,
    stack_experts,
    tiny_config,
    write_config,
    write_hf,
    write_safetensors,
)
from formats_gguf import tensors_of, write_gguf
from formats_native import cut, native, write_params, write_pth

from convert.pipeline import convert
from convert.plan import plan
from convert.readers.detect import open_source
from convert.recipe import uniform
from mlx_mixtral.config import read_config
from mlx_mixtral.loading import load_model

MOE = tiny_config(
    num_local_experts=8, intermediate_size=224, head_dim=16, max_position_embeddings=32768
)
CONFIGS = {
    "8 experts": MOE,
    "4 experts, wide heads": replace(MOE, num_local_experts=4, head_dim=32, num_hidden_layers=3),
    "dense": replace(MOE, num_local_experts=0),
    "dense, window": replace(MOE, num_local_experts=0, sliding_window=64, rope_theta=1e4),
}
GOLDEN = Path(__file__).parent / "golden" / "moe_bfloat16"


class Model:
    """Weights, every one of which is exactly what ``dtype`` can hold."""

    def __init__(self, config, dtype, weights=None):
        self.config, self.dtype = config, dtype
        kind = {"BF16": mx.bfloat16, "F16": mx.float16}[dtype]
        weights = random_weights(config) if weights is None else weights
        self.weights = {
            name: np.array(mx.array(w).astype(kind).astype(mx.float32))
            for name, w in sorted(weights.items())
        }

    def encoded(self, weights):
        return {name: encode(values, self.dtype) for name, values in weights.items()}


def hugging_face(model, folder):
    return write_hf(folder, model.config, model.weights, dtype=model.dtype, shards=3)


def transformers_5(model, folder):
    if not model.config.is_moe:
        pytest.skip("dense models have one spelling")
    weights = fused(model.weights, model.config)
    return write_hf(folder, model.config, weights, dtype=model.dtype, shards=2)


def consolidated_pth(model, folder):
    write_params(folder, model.config, **window(model.config))
    raw = model.encoded(native(model.weights, model.config))
    write_pth(folder / "consolidated.00.pth", raw)
    return folder


def window(config):
    return {"sliding_window": config.sliding_window} if config.sliding_window else {}


def split_unpadded(model, folder):
    file = consolidated_pth(model, folder) / "consolidated.00.pth"
    size = file.stat().st_size
    names = [f"consolidated.00.pth-split{n}" for n in range(11)]
    return cut(file, names, [size * n // 11 + 3 * n for n in range(1, 11)])


def split_padded(model, folder):
    file = consolidated_pth(model, folder) / "consolidated.00.pth"
    names = [f"consolidated.00-split{n:02}.pth" for n in range(9)]
    return cut(file, names, [file.stat().st_size * n // 9 + n for n in range(1, 9)])


def by_layers(model, folder):
    """consolidated.NN.pt: experts one above the other, w2 turned."""
    if not model.config.is_moe:
        pytest.skip("only Mixtral came so")
    write_params(folder, model.config)
    weights = native(model.weights, model.config)
    files = [{}, {}]
    for name, values in weights.items():
        layer = int(name.split(".")[1]) if name.startswith("layers.") else 0
        if ".experts." not in name:
            name = name.replace("feed_forward.gate", "block_sparse_moe.gate")
            files[layer % 2 if layer else 0][name] = values
    experts = range(model.config.num_local_experts)
    for layer in range(model.config.num_hidden_layers):
        for w in ("w1", "w2", "w3"):
            each = [weights[f"layers.{layer}.feed_forward.experts.{e}.{w}.weight"] for e in experts]
            rows = [values.T if w == "w2" else values for values in each]
            name = f"layers.{layer}.block_sparse_moe.{w}"
            files[layer % 2][name] = np.ascontiguousarray(np.concatenate(rows))
    for number, tensors in enumerate(files):
        write_pth(folder / f"consolidated.{number:02}.pt", model.encoded(tensors))
    return folder


def consolidated_safetensors(model, folder):
    write_params(folder, model.config, **window(model.config))
    raw = model.encoded(native(model.weights, model.config))
    write_safetensors(folder / "consolidated.safetensors", raw)
    return folder


def mlx_stacked(model, folder):
    kind = {"BF16": mx.bfloat16, "F16": mx.float16}[model.dtype]
    arrays = {name: mx.array(values).astype(kind) for name, values in model.weights.items()}
    write_config(folder, model.config)
    mx.save_safetensors(str(folder / "model.safetensors"), stack_experts(arrays, model.config))
    return folder


def mlx_of_january_2024(model, folder):
    kind = {"BF16": mx.bfloat16, "F16": mx.float16}[model.dtype]
    arrays = {name: mx.array(values).astype(kind) for name, values in model.weights.items()}
    names = sorted(arrays)
    for i in range(2):
        part = {name: arrays[name] for name in names[i::2]}
        file = f"weights.{i:02}.safetensors"
        write_config(folder, model.config)
        mx.save_safetensors(str(folder / file), part)
    return folder


def mlx_of_december_2023(model, folder):
    if model.dtype == "BF16":
        pytest.skip("NumPy has no bfloat16")
    write_params(folder, model.config, "config.json", **window(model.config))
    weights = native(model.weights, model.config)
    halves = {name: values.astype(np.float16) for name, values in weights.items()}
    names = sorted(halves)
    np.savez(folder / "weights.0.npz", **{name: halves[name] for name in names[::2]})
    np.savez(folder / "weights.1.npz", **{name: halves[name] for name in names[1::2]})
    return folder


def llama_cpp(model, folder, **options):
    folder.mkdir()
    if model.config.sliding_window:
        options["metadata"] = {"llama.attention.sliding_window": model.config.sliding_window}
    per_piece = options.pop("per_piece", 0)
    tensors = tensors_of(model.config, model.weights, **options.pop("layout", {}))
    kind = gguf.GGMLQuantizationType[model.dtype]
    path = folder / "model.gguf"
    write_gguf(path, model.config, tensors, kind, per_piece=per_piece, **options)
    return folder


def llama_cpp_of_2023(model, folder):
    return llama_cpp(model, folder, layout={"stacked": False})


def llama_cpp_in_pieces(model, folder):
    return llama_cpp(model, folder, per_piece=7)


FORMS = [
    transformers_5,
    consolidated_pth,
    split_unpadded,
    split_padded,
    by_layers,
    consolidated_safetensors,
    mlx_stacked,
    mlx_of_january_2024,
    mlx_of_december_2023,
    llama_cpp,
    llama_cpp_of_2023,
    llama_cpp_in_pieces,
]


def content(folder: Path) -> dict[str, bytes]:
    """All but the manifest, which says where it comes from."""
    return {
        file.name: file.read_bytes() for file in folder.iterdir() if file.name[:8] != "manifest"
    }


def converted(source: Path, out: Path, bits: int) -> Path:
    convert(plan(open_source(source), uniform(bits, 32)), out)
    return out


@pytest.fixture(scope="module", params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture(scope="module", params=["BF16", "F16"])
def model(request, config):
    return Model(config, request.param)


@pytest.fixture(scope="module")
def original(model, tmp_path_factory):
    """The Hugging Face checkpoint, converted to 16 and to 4 bits."""
    folder = tmp_path_factory.mktemp("original")
    source = hugging_face(model, folder / "source")
    return {bits: content(converted(source, folder / f"{bits}", bits)) for bits in (16, 4)}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_same_bytes_come_out(form, model, original, tmp_path):
    source = form(model, tmp_path / "source")
    for bits, wanted in original.items():
        found = content(converted(source, tmp_path / f"{bits}", bits))
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if found[name] != wanted[name]] == []


@pytest.mark.parametrize("form", [hugging_face, *FORMS], ids=lambda form: form.__name__)
def test_the_logits_are_those_of_transformers(form, tmp_path):
    """transformers made the weights and the logits; every form carries them to ours."""
    config = replace(read_config(GOLDEN), max_position_embeddings=32768)
    arrays = mx.load(str(GOLDEN / "model.safetensors"))
    weights = {name: np.array(values.astype(mx.float32)) for name, values in arrays.items()}
    source = form(Model(config, "BF16", weights), tmp_path / "source")
    convert(plan(open_source(source), None), tmp_path / "out")
    golden = np.load(GOLDEN / "golden.npz")
    loaded = load_model(tmp_path / "out", read_config(tmp_path / "out"), mx.float32)
    assert relative_difference(loaded(mx.array(golden["ids"])), golden["logits"]) < 5e-5
