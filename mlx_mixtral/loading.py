"""The assembler: a model's name in, a model ready to run out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from mlx_mixtral.budget import PROGRAM, USUAL_CONTEXTS, Budget, slots_within
from mlx_mixtral.catalog import resolve
from mlx_mixtral.config import ModelConfig, read_config
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
from mlx_mixtral.network import (
    activation_dtype,
    empty_network,
    packing,
    places,
    read_weights,
    ready,
)
from mlx_mixtral.streaming import Streaming, demand_of, held_bytes, streamed_network
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
    are allowed here; the model itself could hold ``own_context``. ``streaming`` tells of experts
    that are read from disk when they are needed; None where all are in memory.
    """

    name: str
    path: Path
    config: ModelConfig
    model: Transformer
    tokenizer: Tokenizer
    template: Template
    chat_temperature: float
    own_context: int
    streaming: Streaming | None = None


def load(
    name: str | Path = "demo",
    *,
    dtype: str | None = None,
    context: int | None = None,
    kv: KVSettings | None = None,
    memory: str | int | None = None,
    read_ahead: int = 0,
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
        memory: what the model may take: bytes, "12GB" for all together, or "50%" of the experts.
            Those for which there is no room are read from disk when they are chosen; that gives
            the same answers later.
        read_ahead: of such experts, how many to read a layer before they are chosen, on a guess.
            Pays where reading takes about as long as computing, and not where it takes longer.
        force: load it whatever memory there is.
        progress: called with (bytes read, bytes in all) as layers arrive.

    Raises:
        ModelError: no such model, or its folder is damaged, incomplete or not Mistral's; or
            there is not enough memory for it.
        UsageError: an unknown dtype or memory, or a context that the model does not have.
    """
    budget = None if memory is None else Budget.of(memory)
    if dtype is not None and dtype not in FLOATS:
        raise UsageError(f"dtype {dtype!r} is unknown; choose one of {', '.join(FLOATS)}")
    folder = resolve(name)
    own = read_config(folder)
    tokenizer = Tokenizer.from_folder(folder)
    template = template_for(tokenizer, folder)
    tensors = open_weights(folder, own)
    compute = FLOATS[dtype] if dtype else activation_dtype(tensors["model.norm.weight"].dtype)
    allowed, slots = _placed(own, tensors, compute, context, kv or KVSettings(), budget, force)
    streaming: Streaming | None = None
    if slots is None:
        model = _filled(tensors, own, compute, progress)
    else:
        model, streaming = streamed_network(own, tensors, compute, slots, read_ahead, progress)
    temperature = _chat_temperature(folder)
    config, own_context = replace(own, max_position_embeddings=allowed), own.max_position_embeddings
    return LanguageModel(
        str(name), folder, config, model, tokenizer, template, temperature, own_context, streaming
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


def _placed(
    config: ModelConfig,
    tensors: dict[str, Tensor],
    dtype: mx.Dtype,
    asked: int | None,
    kv: KVSettings,
    budget: Budget | None,
    force: bool,
) -> tuple[int, tuple[int, ...] | None]:
    """Tokens of context, and for each layer how many experts are in memory; None: all of all."""
    own = config.max_position_embeddings
    if asked is not None and not 1 <= asked <= own:
        raise UsageError(f"a context of {asked} tokens is not possible; the model has 1 to {own}")
    free = None if force else free_memory()
    if budget is None or budget.share == 1:
        return _allowed_context(config, tensors, dtype, asked, kv, free), None
    if not config.is_moe and budget.share:
        raise UsageError("this model has no experts of which a share could be kept")
    for context in [asked] if asked else [n for n in USUAL_CONTEXTS if n <= own] or [own]:
        work = working_bytes(replace(config, max_position_embeddings=context), dtype)
        rest = work + kv_bytes(config, context, kv, dtype)
        demand = demand_of(config, tensors, dtype, rest)
        if budget.bytes is None or demand.least <= budget.bytes:
            break
    if budget.bytes and (not config.is_moe or budget.bytes >= demand.most):
        room = budget.bytes - PROGRAM
        free = room if free is None else min(free, room)
        return _allowed_context(config, tensors, dtype, asked, kv, free), None
    slots = slots_within(budget, demand)
    if free is not None and demand.held(slots) + rest > free:
        raise ModelError(
            f"{(demand.held(slots) + rest) / 1e9:.1f} GB would be taken, but {free / 1e9:.1f} GB "
            "are free here: take a smaller --memory, or try all the same with --force"
        )
    keep_in_memory(demand.held(slots), rest - work, work)
    # What MLX keeps for later of the memory that it was given back is part of the budget.
    mx.set_cache_limit(work)
    return context, slots


def _allowed_context(
    config: ModelConfig,
    tensors: dict[str, Tensor],
    dtype: mx.Dtype,
    asked: int | None,
    kv: KVSettings,
    free: int | None,
) -> int:
    """Tokens of context for which there is memory, and macOS told what to keep in memory."""
    weights = sum(held_bytes(tensor, dtype) for tensor in tensors.values())
    wanted = replace(config, max_position_embeddings=asked or config.max_position_embeddings)
    allowed = wanted.max_position_embeddings
    if free is not None:
        allowed = context_that_fits(wanted, weights, dtype, kv, free)
    if asked and allowed < asked:
        raise ModelError(
            f"there is memory for {allowed:,} tokens of context, not for {asked:,}; ask for "
            "fewer, keep keys and values in 8 or 4 bits (--kv-bits), or try with --force"
        )
    keep_in_memory(weights, kv_bytes(config, allowed, kv, dtype), working_bytes(config, dtype))
    return allowed


def _filled(
    tensors: dict[str, Tensor], config: ModelConfig, dtype: mx.Dtype, progress: Progress | None
) -> Transformer:
    model = empty_network(config, packing(config, tensors))
    total, done = sum(t.nbytes for t in tensors.values()), 0
    rows = {name: [tensors[part] for part in parts] for name, parts in places(model).items()}
    for name, value in read_weights(rows, dtype):
        model.load_weights([(name, value)], strict=False)
        done += sum(tensor.nbytes for tensor in rows[name])
        if progress:
            progress(done, total)
    mx.clear_cache()
    return ready(model)


def _chat_temperature(folder: Path) -> float:
    """What generation_config.json recommends; 0.7, Mistral's own, where it says nothing."""
    settings = read_json_if_there(folder / "generation_config.json")
    if settings.get("do_sample") is False:
        return 0.0
    value = settings.get("temperature", 0.7)
    return float(value) if isinstance(value, int | float) else 0.7
