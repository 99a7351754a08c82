"""What a source is, told without converting it."""

import math
from collections import Counter
from typing import Any

from convert.plan import own_recipe, plan
from convert.readers import Source, Tensor
from mlx_mixtral.config import ModelConfig

# Parameters tell the published models apart, whatever form they come in.
_NAMES = {
    46_702_792_704: "Mixtral 8x7B",
    140_620_634_112: "Mixtral 8x22B",
    140_630_071_296: "Mixtral 8x22B with the vocabulary of v0.3",
    7_241_732_096: "Mistral 7B",
    7_248_023_552: "Mistral 7B with the vocabulary of v0.3",
}


def describe(source: Source) -> dict[str, Any]:
    """Facts about ``source``, ready for JSON. Headers only were read."""
    made = plan(source, own_recipe(source))
    config = source.config
    return {
        "form": source.form,
        "model": _NAMES.get(made.parameters, "a model of its own shape"),
        "parameters": made.parameters,
        "active_parameters": _active(source),
        "shape": _shape(config),
        "weights": _kinds(source),
        "weight_bytes": made.source_bytes,
        "bits_per_weight": round(8 * made.source_bytes / made.parameters, 2),
        "files": {
            file.name: file.stat().st_size for file in sorted(source.files, key=lambda f: f.name)
        },
        "notes": [*source.notes, *_oddities(source)],
    }


def _shape(config: ModelConfig) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "sliding_window": config.sliding_window,
        "tied_embeddings": config.tie_word_embeddings,
    }
    if config.is_moe:
        shape |= {"experts": config.num_local_experts, "active": config.num_experts_per_tok}
    return shape


def _active(source: Source) -> int:
    """Parameters that one token meets."""
    active = source.config.num_experts_per_tok
    return sum(
        math.prod(tensor.parts[0].shape) * (active if tensor.stacked else 1)
        for tensor in source.tensors.values()
    )


def _kinds(source: Source) -> dict[str, dict[str, int]]:
    """How the weights are stored: kind -> number of tensors and their bytes."""
    tensors: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in source.tensors.values():
        tensors[_kind(tensor)] += 1
        sizes[_kind(tensor)] += tensor.nbytes
    return {kind: {"tensors": tensors[kind], "bytes": sizes[kind]} for kind in tensors}


def _kind(tensor: Tensor) -> str:
    if tensor.spec is None:
        return str(tensor.dtype).removeprefix("mlx.core.")
    spec = tensor.spec
    mode = "" if spec.mode == "affine" else f" {spec.mode}"
    if tensor.exact:
        return f"{spec.bits} bits in groups of {spec.group_size}{mode}"
    return f"a form that MLX lacks, best requantized at {spec.bits} bits"


def _oddities(source: Source) -> list[str]:
    config, found = source.config, []
    if config.is_moe and config.num_experts_per_tok != 2:
        found.append(f"{config.num_experts_per_tok} experts answer a token; Mixtral has 2")
    if config.rope_theta not in (1e4, 1e6):
        found.append(f"rope_theta is {config.rope_theta:g}; Mistral's models have 1e6 or 1e4")
    dtypes = {t.dtype for t in source.tensors.values() if len(t.shape) > 1 and t.spec is None}
    if len(dtypes) > 1:
        found.append("matrices come in several types of floats")
    return found
