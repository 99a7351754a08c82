"""The forms that weights came in, written by the programs that write them, against each other.

    pip install torch==2.13.0 transformers==5.23.0 mistral-common -e .
    python tests/golden/prove_formats.py

Not part of the tests (``test_every_format.py`` does the same without torch). Random models of
Mixtral's proportions with Mistral's real tokenizers are made by transformers and saved by it (in
both of its spellings), by torch.save (whole, cut, by layers), by safetensors, by gguf's writer,
by mlx-lm, and by GPTQ and AWQ packers; each is converted, and its files and logits compared.
"""

from __future__ import annotations

import importlib.resources
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import safetensors.torch
import torch
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

import formats_gptq
from checkpoints import encode
from formats_gguf import tensors_of, vocabulary_of, write_gguf
from sentencepiece import SentencePieceProcessor

from convert.pipeline import convert
from convert.plan import own_recipe, plan
from convert.readers.detect import open_source
from convert.recipe import uniform
from mlx_mixtral.config import read_config
from mlx_mixtral.loading import load_model
from mlx_mixtral.tokenizer import Tokenizer
from mlx_mixtral.weights import packed_shapes

DATA = importlib.resources.files("mistral_common") / "data"
V1 = DATA / "tokenizer.model.v1"
V3 = DATA / "mistral_instruct_tokenizer_240323.model.v3"
# 8x7B has 4096 / 14336 / 32 / 8, 8x22B 6144 / 16384 / 48 / 8: the same proportions, smaller.
SHAPES: dict[str, tuple[bool, Any, dict[str, Any]]] = {
    "8x7B, v1": (True, V1, {"hidden_size": 256, "intermediate_size": 896, "heads": (16, 4)}),
    "8x22B, v3": (True, V3, {"hidden_size": 384, "intermediate_size": 1024, "heads": (24, 4)}),
    "7B, v3": (False, V3, {"hidden_size": 256, "intermediate_size": 896, "heads": (16, 4)}),
}
TEXT = "Déjà vu: «naïve» façade, ¿qué tal? 你好 🙂\n\tx = {1: 'a'}  # 3.14"


def main() -> None:
    for name, (moe, tokenizer, shape) in SHAPES.items():
        print(f"\n{name}")
        with tempfile.TemporaryDirectory() as folder:
            prove(Path(folder), moe, Path(str(tokenizer)), shape)


def prove(work: Path, moe: bool, tokenizer: Path, shape: dict[str, Any]) -> None:
    model, ids, logits = make(moe, tokenizer, shape)
    sources = write(work, model, tokenizer)
    wanted: dict[int, dict[str, bytes]] = {}
    for form, source in sources.items():
        for bits in (4, 16):
            out = converted(source, work / "out", bits)
            found = weights_of(out)
            assert found == wanted.setdefault(bits, found), f"{form}: other bytes at {bits} bits"
        assert tokens(out, tokenizer), f"{form}: other tokens"
        print(f"  {form:<34} bytes and tokens alike, logits {difference(out, ids, logits):.1e}")
    rounded(work, next(iter(sources.values())), tokenizer)


def make(moe: bool, tokenizer: Path, shape: dict[str, Any]):
    torch.manual_seed(7)
    heads, kv_heads = shape["heads"]
    settings = {
        "vocab_size": SentencePieceProcessor(str(tokenizer)).vocab_size(),
        "hidden_size": shape["hidden_size"],
        "intermediate_size": shape["intermediate_size"],
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 32768,
        "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    config = (MixtralConfig if moe else MistralConfig)(**settings)
    model = (MixtralForCausalLM if moe else MistralForCausalLM)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "embed" in name or name.endswith(".gate.weight"):
                parameter.normal_(0, 1)
            else:
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
            parameter.copy_(parameter.bfloat16())
        ids = np.random.default_rng(0).integers(3, settings["vocab_size"], (2, 40))
        logits = model(torch.from_numpy(ids), use_cache=False).logits.numpy()
    return model.bfloat16(), ids, logits


def write(work: Path, model: torch.nn.Module, tokenizer: Path) -> dict[str, Path]:
    config = model.config
    sources = {}

    def begin(form: str) -> Path:
        sources[form] = work / f"source{len(sources)}"
        sources[form].mkdir()
        shutil.copy(tokenizer, sources[form] / "tokenizer.model")
        return sources[form]

    model.save_pretrained(begin("transformers, 4's names"), max_shard_size="20MB")
    hf = next(iter(sources.values()))
    if config.model_type == "mixtral":
        model.save_pretrained(begin("transformers, 5's names"), save_original_format=False)
    state = {}
    for file in sorted(hf.glob("*.safetensors")):
        state |= safetensors.torch.load_file(file)
    native = mistral(state, config)

    torch.save(native, with_params(begin("torch.save, whole"), config) / "consolidated.00.pth")
    folder = with_params(begin("torch.save, in 11 pieces"), config)
    data = (sources["torch.save, whole"] / "consolidated.00.pth").read_bytes()
    for n in range(11):
        piece = data[len(data) * n // 11 : len(data) * (n + 1) // 11]
        (folder / f"consolidated.00.pth-split{n}").write_bytes(piece)
    if config.model_type == "mixtral":
        folder = with_params(begin("torch.save, by layers"), config)
        for n in range(config.num_hidden_layers):
            torch.save(layer(native, n), folder / f"consolidated.{n:02}.pt")
    folder = with_params(begin("safetensors, Mistral's names"), config)
    safetensors.torch.save_file(native, folder / "consolidated.safetensors")

    ours, weights = read_config(hf), {name: w.float().numpy() for name, w in state.items()}
    pieces = vocabulary_of(SentencePieceProcessor(str(tokenizer)))
    for form, stacked in (("gguf, experts stacked", True), ("gguf, experts one by one", False)):
        folder = work / f"source{len(sources)}"
        folder.mkdir()
        sources[form] = folder
        tensors = tensors_of(ours, dict(sorted(weights.items())), stacked=stacked)
        kind = gguf.GGMLQuantizationType.BF16
        write_gguf(folder / "model.gguf", ours, tensors, kind, vocabulary=pieces)

    import mlx_lm.utils

    folder = begin("mlx-lm, 16 bits")
    theirs, _ = mlx_lm.utils.load_model(hf, lazy=True)
    mlx_lm.utils.save_model(folder, theirs)
    (folder / "config.json").write_text((hf / "config.json").read_text())
    return sources


def mistral(state: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """Mistral's names and order of rows."""
    names = {
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "model.embed_tokens": "tok_embeddings",
        "model.norm": "norm",
        "lm_head": "output",
    }
    out = {}
    for name, value in state.items():
        stem = name.removesuffix(".weight")
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
        rest = match[2] if match else stem
        new = names.get(rest, rest.replace("block_sparse_moe", "feed_forward"))
        if rest.endswith(("q_proj", "k_proj")):
            query = rest.endswith("q_proj")
            heads = config.num_attention_heads if query else config.num_key_value_heads
            halves = value.view(heads, 2, -1, value.shape[1])
            value = halves.transpose(1, 2).reshape(value.shape).contiguous()
        out[f"layers.{match[1]}.{new}.weight" if match else f"{new}.weight"] = value
    return out


def layer(native: dict[str, torch.Tensor], n: int) -> dict[str, torch.Tensor]:
    """What consolidated.NN.pt holds: a layer, its experts one above the other."""
    start = f"layers.{n}."
    out = {name: w for name, w in native.items() if name.startswith(start) and ".exp" not in name}
    out |= {name: w for name, w in native.items() if n == 0 and not name.startswith("layers.")}
    gate = out.pop(f"{start}feed_forward.gate.weight")
    out[f"{start}block_sparse_moe.gate.weight"] = gate
    for w in ("w1", "w2", "w3"):
        each = [native[f"{start}feed_forward.experts.{e}.{w}.weight"] for e in range(8)]
        each = [e.T for e in each] if w == "w2" else each
        out[f"{start}block_sparse_moe.{w}"] = torch.cat(each).contiguous()
    return out


def with_params(folder: Path, config: Any) -> Path:
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
    }
    if config.model_type == "mixtral":
        params["moe"] = {"num_experts_per_tok": 2, "num_experts": 8}
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def rounded(work: Path, hf: Path, tokenizer: Path) -> None:
    """Forms that round: what comes out against what the form itself says, and the original."""
    config = read_config(hf)
    arrays: dict[str, mx.array] = {}
    for file in sorted(hf.glob("*.safetensors")):
        arrays |= mx.load(str(file))
    weights = {n: np.array(w.astype(mx.float32)) for n, w in sorted(arrays.items())}
    for kind in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4"):
        folder = work / kind
        folder.mkdir()
        type_ = gguf.GGMLQuantizationType[kind]
        stored = write_gguf(folder / "x.gguf", config, tensors_of(config, weights), type_)
        exact = {n: gguf.quants.dequantize(d, t) for n, (t, d) in stored.items()}
        report(f"GGUF {kind}", folder, work, config, tensors_of(config, weights), exact)
    for bits, size, sym in ((8, 128, True), (4, 128, True), (4, 128, False), (4, -1, True)):
        pack = formats_gptq.linear(bits, size, symmetric=sym)
        how = f"{bits} bits g{size}{'' if sym else ', asymmetric'}"
        quantized_form(f"GPTQ {how}", "gptq", pack, work, config, weights)
    act = formats_gptq.linear(4, 128, order=True)
    quantized_form("GPTQ 4 bits g128, act-order", "gptq", act, work, config, weights)
    awq = formats_gptq.linear(4, 128, symmetric=False)
    quantized_form("AWQ 4 bits g128", "awq", awq, work, config, weights)


def quantized_form(form, method, pack, work, config, weights) -> None:
    quantized, plain = {}, dict(weights)
    for name in weights:
        if q := pack(name.removesuffix(".weight"), weights[name]):
            quantized[name.removesuffix(".weight")] = q
            del plain[name]
    packer = formats_gptq.gptq_arrays if method == "gptq" else formats_gptq.awq_arrays
    raw = {n: encode(w, "F16") for n, w in plain.items()}
    for path, q in quantized.items():
        for kind, values in packer(q).items():
            raw[f"{path}.{kind}"] = encode(values, "I32" if values.dtype.kind == "i" else "F16")
    one = next(iter(quantized.values()))
    settings = {"quant_method": method, "bits": one.bits, "group_size": 128, "version": "gemm"}
    if "g-1" in form:
        settings["group_size"] = -1
    settings |= {"desc_act": "act" in form, "sym": "asym" not in form}
    folder = formats_gptq.write(work / re.sub(r"\W", "", form), config, raw, settings)
    exact = {f"{path}.weight": dequantized(q) for path, q in quantized.items()}
    report(form, folder, work, config, weights, exact, native=False)


def dequantized(q: Any) -> np.ndarray:
    scales, zeros = q.scales.astype(np.float64), q.zeros.astype(np.float64)
    return (q.codes - zeros[:, q.groups]) * scales[:, q.groups]


def report(form, folder, work, config, original, exact, native=True) -> None:
    """Relative RMS errors: of the form, and of what came out against the form."""
    source = open_source(folder)
    made = plan(source, own_recipe(source))
    name = "blk.1.ffn_down_exps.weight" if native else None
    path = "model.layers.1.block_sparse_moe.switch_mlp.down_proj"
    if not config.is_moe:
        name, path = ("blk.1.ffn_down.weight" if native else None), "model.layers.1.mlp.down_proj"
    out = work / "rounded"
    shutil.rmtree(out, ignore_errors=True)
    convert(made, out)
    arrays = mx.load(str(out / "model.safetensors"))
    spec = made.spec(f"{path}.weight")
    weight, *scales = [arrays[f"{path}.{k}"] for k in packed_shapes((64,), spec)]
    # In float32, which rounds nothing: what is compared is what the file says.
    scales = [a if a.dtype == mx.uint8 else a.astype(mx.float32) for a in scales]
    scales += [None] * (2 - len(scales))
    found = mx.dequantize(weight, *scales, spec.group_size, spec.bits, spec.mode)
    found = np.array(found.astype(mx.float32)).astype(np.float64)
    if native:
        want, first = exact[name], original[name]
    elif config.is_moe:
        keys = [f"model.layers.1.block_sparse_moe.experts.{e}.w2.weight" for e in range(8)]
        want, first = np.stack([exact[k] for k in keys]), np.stack([original[k] for k in keys])
    else:
        want, first = exact[f"{path}.weight"], original[f"{path}.weight"]
    kept = "codes kept" if made.kept(f"{path}.weight") else f"requantized at {spec.bits} bits"
    print(
        f"  {form:<34} {kept}; the form's error {rms(want - first, first):.1e}, "
        f"ours against the form {rms(found - want, want):.1e}"
    )


def rms(difference: np.ndarray, of: np.ndarray) -> float:
    return float(np.sqrt((difference**2).mean() / (of**2).mean()))


def converted(source: Path, out: Path, bits: int) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    convert(plan(open_source(source), uniform(bits)), out)
    return out


def weights_of(folder: Path) -> dict[str, bytes]:
    names = ("*.safetensors", "config.json", "*.index.json")
    return {f.name: f.read_bytes() for pattern in names for f in folder.glob(pattern)}


def difference(folder: Path, ids: np.ndarray, logits: np.ndarray) -> float:
    """The largest, as a share of the largest logit of transformers."""
    found = np.array(load_model(folder, read_config(folder), mx.float32)(mx.array(ids)))
    return float(abs(found - logits).max() / abs(logits).max())


def tokens(folder: Path, original: Path) -> bool:
    want = SentencePieceProcessor(str(original)).encode(TEXT)
    return Tokenizer.from_folder(folder).encode(TEXT) == want


if __name__ == "__main__":
    main()
