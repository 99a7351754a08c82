"""The assembler: a model's name in, a model ready to run out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from mlx_mixtral.catalog import resolve
from mlx_mixtral.config import ModelConfig, QuantSpec, read_config
from mlx_mixtral.errors import ModelError, UsageError
from mlx_mixtral.generation.kv import KVSettings, kv_bytes
from mlx_mixtral.jsonfile import read_json_if_there
from mlx_mixtral.memory import (
    context_that_fits,
    free_memory,
    keep_in_memory,
    working_bytes,
)
from mlx_mixtral.model.transformer import Transformer
from mlx_mixtral.network import activation_dtype, empty_network, places, ready, weight_dtype
from mlx_mixtral.template import Template, template_for
from mlx_mixtral.tokenizer import Tokenizer
from mlx_mixtral.weights import Tensor, open_weights

Progress = Callable[[int, int], None]

FLOATS = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model with its tokenizer and chat template.

    ``model`` maps token ids [B, L] to logits [B, L, vocabulary]. ``chat_temperature`` is
    what a chat samples with unless told otherwise. ``config`` says how many tokens of context
    are allowed here; the model itself could hold ``own_context``.
    """

    name: str
    path: Path
    config: ModelConfig
    model: Transformer
    tokenizer: Tokenizer
    template: Template
    chat_temperature: float
    own_context: int


def load(
    name: str | Path = "demo",
    *,
    dtype: str | None = None,
    context: int | None = None,
    kv: KVSettings | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> LanguageModel:
    """Load a model: ``demo``, a folder (MLX or Hugging Face safetensors), or an installed name.

    Args:
        name: what to load.
        dtype: "float32", "float16" or "bfloat16" for the activations; by default what
            suits the device (see ``activation_dtype``).
        context: tokens of context to allow; by default as many of the model's own as there
            is memory for.
        kv: how keys and values are going to be kept, for the reckoning of that memory.
        force: load it whatever memory there is.
        progress: called with (bytes read, bytes in all) as layers arrive.

    Raises:
        ModelError: no such model, or its folder is damaged, incomplete or not Mistral's; or
            there is not enough memory for it.
        UsageError: an unknown dtype, or a context that the model does not have.
    """
    if dtype is not None and dtype not in FLOATS:
        raise UsageError(f"dtype {dtype!r} is unknown; choose one of {', '.join(FLOATS)}")
    folder = resolve(name)
    own = read_config(folder)
    tokenizer = Tokenizer.from_folder(folder)
    template = template_for(tokenizer, folder)
    tensors = open_weights(folder, own)
    compute = FLOATS[dtype] if dtype else activation_dtype(tensors["model.norm.weight"].dtype)
    allowed = _allowed_context(own, tensors, compute, context, kv or KVSettings(), force)
    model = _filled(tensors, own, compute, progress)
    temperature = _chat_temperature(folder)
    config, own_context = replace(own, max_position_embeddings=allowed), own.max_position_embeddings
    return LanguageModel(
        str(name), folder, config, model, tokenizer, template, temperature, own_context
    )


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
    return _filled(tensors, config, dtype, progress)


def _allowed_context(
    config: ModelConfig,
    tensors: dict[str, Tensor],
    dtype: mx.Dtype,
    asked: int | None,
    kv: KVSettings,
    force: bool,
) -> int:
    """Tokens of context, and macOS told what to keep in memory for them."""
    own = config.max_position_embeddings
    if asked is not None and not 1 <= asked <= own:
        raise UsageError(f"a context of {asked} tokens is not possible; the model has 1 to {own}")
    weights = sum(_held_bytes(tensor, dtype) for tensor in tensors.values())
    wanted = replace(config, max_position_embeddings=asked or own)
    allowed = wanted.max_position_embeddings
    if not force:
        allowed = context_that_fits(wanted, weights, dtype, kv, free_memory())
    if asked and allowed < asked:
        raise ModelError(
            f"there is memory for {allowed:,} tokens of context, not for {asked:,}; ask for "
            "fewer, keep keys and values in 8 or 4 bits (--kv-bits), or try with --force"
        )
    keep_in_memory(weights, kv_bytes(config, allowed, kv, dtype), working_bytes(config, dtype))
    return allowed


def _held_bytes(tensor: Tensor, dtype: mx.Dtype) -> int:
    """What a tensor takes once it is loaded: codes and shared exponents stay as they are."""
    if not mx.issubdtype(tensor.dtype, mx.floating):
        return tensor.nbytes
    return math.prod(tensor.shape) * weight_dtype(tensor.name, dtype).size


def _filled(
    tensors: dict[str, Tensor], config: ModelConfig, dtype: mx.Dtype, progress: Progress | None
) -> Transformer:
    model = empty_network(config, _specs(config, tensors))
    total, done = sum(t.nbytes for t in tensors.values()), 0
    # One array at a time, since its parts are in memory beside it while it is put together;
    # the largest first, while there is the most room.
    rows = {name: [tensors[part] for part in parts] for name, parts in places(model).items()}
    for name, parts in sorted(rows.items(), key=lambda item: -sum(t.nbytes for t in item[1])):
        value = _read(parts)
        if mx.issubdtype(value.dtype, mx.floating):
            value = value.astype(weight_dtype(name, dtype))
        mx.eval(value)
        model.load_weights([(name, value)], strict=False)
        done += sum(tensor.nbytes for tensor in parts)
        if progress:
            progress(done, total)
    mx.clear_cache()
    return ready(model)


def _specs(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, QuantSpec | None]:
    """How the matrices are packed that came packed."""
    packed = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    return {path: config.quantization.of(path) for path in packed} if config.quantization else {}


def _read(parts: list[Tensor]) -> mx.array:
    """The rows of all parts, one below the other."""
    arrays = [part.read() for part in parts]
    return mx.concatenate(arrays, axis=-2) if len(arrays) > 1 else arrays[0]


def _chat_temperature(folder: Path) -> float:
    """What generation_config.json recommends; 0.7, Mistral's own, where it says nothing."""
    settings = read_json_if_there(folder / "generation_config.json")
    if settings.get("do_sample") is False:
        return 0.0
    value = settings.get("temperature", 0.7)
    return float(value) if isinstance(value, int | float) else 0.7
