"""The assembler: a model's name in, a model ready to run out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_mixtral.catalog import resolve
from mlx_mixtral.config import ModelConfig, read_config
from mlx_mixtral.cpu import SpreadExperts, spread
from mlx_mixtral.errors import UsageError
from mlx_mixtral.experts.resident import ResidentExperts
from mlx_mixtral.jsonfile import read_json_if_there
from mlx_mixtral.model.transformer import Transformer
from mlx_mixtral.template import Template, template_for
from mlx_mixtral.tokenizer import Tokenizer
from mlx_mixtral.weights import Tensor, open_weights

Progress = Callable[[int, int], None]

FLOATS = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model with its tokenizer and chat template.

    ``model`` maps token ids [B, L] to logits [B, L, vocabulary]. ``chat_temperature`` is
    what a chat samples with unless told otherwise.
    """

    name: str
    path: Path
    config: ModelConfig
    model: Transformer
    tokenizer: Tokenizer
    template: Template
    chat_temperature: float


def load(
    name: str | Path = "demo", *, dtype: str | None = None, progress: Progress | None = None
) -> LanguageModel:
    """Load a model: ``demo``, a folder (MLX or Hugging Face safetensors), or an installed name.

    Args:
        name: what to load.
        dtype: "float32", "float16" or "bfloat16" for the activations; by default what
            suits the device (see ``activation_dtype``).
        progress: called with (bytes read, bytes in all) as layers arrive.

    Raises:
        ModelError: no such model, or its folder is damaged, incomplete or not Mistral's.
        UsageError: an unknown dtype.
    """
    if dtype is not None and dtype not in FLOATS:
        raise UsageError(f"dtype {dtype!r} is unknown; choose one of {', '.join(FLOATS)}")
    folder = resolve(name)
    config = read_config(folder)
    tokenizer = Tokenizer.from_folder(folder)
    template = template_for(tokenizer, folder)
    model = load_model(folder, config, FLOATS[dtype] if dtype else None, progress)
    temperature = _chat_temperature(folder)
    return LanguageModel(str(name), folder, config, model, tokenizer, template, temperature)


def load_model(
    folder: Path,
    config: ModelConfig,
    dtype: mx.Dtype | None = None,
    progress: Progress | None = None,
) -> Transformer:
    """The network alone, its weights in memory.

    Raises:
        ModelError: see ``open_weights``; everything is checked before any weight is read.
    """
    tensors = open_weights(folder, config)
    dtype = dtype or activation_dtype(tensors["model.norm.weight"].dtype)
    model = empty_model(config)
    _quantize(model, config, tensors)
    total, done = sum(t.nbytes for t in tensors.values()), 0
    for tensor in tensors.values():
        value = tensor.read()
        if mx.issubdtype(value.dtype, mx.floating):
            value = value.astype(weight_dtype(tensor.name, dtype))
        # One at a time: a stack and its parts are in memory together while it is evaluated.
        mx.eval(value)
        model.load_weights([(tensor.name, value)], strict=False)
        done += tensor.nbytes
        if progress:
            progress(done, total)
    mx.clear_cache()
    return ready(model)


def empty_model(config: ModelConfig) -> Transformer:
    """A network for weights to be loaded into, as this device computes it best."""
    experts = SpreadExperts if _on_cpu() else ResidentExperts
    return Transformer(config, (lambda _: experts(config)) if config.is_moe else None)


def ready(model: Transformer) -> Transformer:
    """The network, once its weights are loaded."""
    if _on_cpu():
        spread(model)
    model.freeze()
    return model


def activation_dtype(stored: mx.Dtype) -> mx.Dtype:
    """What to compute in, given the checkpoint's 16-bit type.

    A GPU computes in bfloat16, which Mixtral was trained in; a float16 checkpoint stays
    float16, because its quantization scales would lose three bits. MLX's CPU backend sums
    16-bit products in 16 bits (5-7 % wrong), multiplies experts in float32 only, and is
    ten times slower with 16-bit scales: there everything is float32.
    """
    if _on_cpu():
        return mx.float32
    return mx.float16 if stored == mx.float16 else mx.bfloat16


def _on_cpu() -> bool:
    return mx.default_device() == mx.Device(mx.cpu)


def weight_dtype(name: str, dtype: mx.Dtype) -> mx.Dtype:
    """The router is kept in float32, in which it computes; the rest in the activations' type."""
    return mx.float32 if ".block_sparse_moe.gate." in name else dtype


def _chat_temperature(folder: Path) -> float:
    """What generation_config.json recommends; 0.7, Mistral's own, where it says nothing."""
    settings = read_json_if_there(folder / "generation_config.json")
    if settings.get("do_sample") is False:
        return 0.0
    value = settings.get("temperature", 0.7)
    return float(value) if isinstance(value, int | float) else 0.7


def _quantize(model: Transformer, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Swap in the packed form of every module whose weights came packed."""

    def spec(path: str, module: nn.Module) -> bool | dict[str, int | str]:
        if f"{path}.scales" not in tensors or config.quantization is None:
            return False
        found = config.quantization.of(path)
        return bool(found) and found.to_dict()  # type: ignore[union-attr]

    nn.quantize(model, class_predicate=spec)
