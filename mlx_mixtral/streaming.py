"""A network whose experts do not all fit into memory: assembled, and looked after."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import mlx.core as mx

from mlx_mixtral.budget import Demand
from mlx_mixtral.config import ModelConfig, QuantSpec
from mlx_mixtral.cpu import unpacked_whole
from mlx_mixtral.experts.files import Files
from mlx_mixtral.experts.filling import Sources, Target
from mlx_mixtral.experts.policy import Counters
from mlx_mixtral.experts.resident import ResidentExperts
from mlx_mixtral.experts.streamed import Stream, StreamedExperts
from mlx_mixtral.model.moe import SparseMoE
from mlx_mixtral.model.transformer import Transformer
from mlx_mixtral.network import (
    arrays,
    empty_network,
    on_cpu,
    packing,
    places,
    read_weights,
    ready,
    weight_dtype,
)
from mlx_mixtral.weights import Tensor, expected_shapes

EXPERTS = ".block_sparse_moe.switch_mlp."
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Streaming:
    """What of a model lies in memory, and how reading the rest goes.

    Attributes:
        slots: for each layer, how many of its ``experts`` are in memory at a time.
        stream: files, and counters since the model was loaded.
    """

    slots: tuple[int, ...]
    experts: int
    stream: Stream

    @property
    def share(self) -> float:
        """Of the experts, how many are in memory, 0 to 1."""
        return sum(self.slots) / len(self.slots) / self.experts


def demand_of(config: ModelConfig, tensors: Tensors, dtype: mx.Dtype, rest: int) -> Demand:
    """What a model takes, computing in ``dtype``."""
    unpacked = on_cpu() and unpacked_whole(packed_weights(config, tensors))
    shared, expert = 0, [0] * config.num_hidden_layers
    for name, tensor in tensors.items():
        held = _unpacked_bytes(tensor, config) if unpacked else held_bytes(tensor, dtype)
        if EXPERTS in name:
            expert[int(name.split(".")[2])] += held // config.num_local_experts
        else:
            shared += held
    return Demand(shared, expert, config.num_local_experts, rest)


def held_bytes(tensor: Tensor, dtype: mx.Dtype) -> int:
    """What a tensor takes once it is loaded: codes and shared exponents stay as they are."""
    if not mx.issubdtype(tensor.dtype, mx.floating):
        return tensor.nbytes
    return math.prod(tensor.shape) * weight_dtype(tensor.name, dtype).size


def _unpacked_bytes(tensor: Tensor, config: ModelConfig) -> int:
    """In a model that is unpacked whole, each matrix is in float32, and has no scales."""
    path, _, kind = tensor.name.rpartition(".")
    return 4 * math.prod(expected_shapes(config)[path]) if kind == "weight" else 0


def packed_weights(config: ModelConfig, tensors: Tensors) -> int:
    """How many weights of a model are packed."""
    shapes = expected_shapes(config)
    return sum(math.prod(shapes[path]) for path in packing(config, tensors))


def streamed_network(
    config: ModelConfig,
    tensors: Tensors,
    dtype: mx.Dtype,
    slots: Sequence[int],
    read_ahead: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Transformer, Streaming]:
    """The network with all that its layers share in memory, and empty slots for experts.

    Args:
        slots: how many a layer.
        read_ahead: experts of the next layer that are read before it has chosen, by what its
            router makes of this layer's input.
        progress: called with (bytes read, bytes in all).

    Raises:
        ModelError: a file cannot be read.
    """
    counters = Counters()
    files = Files((span.file for t in tensors.values() for span in t.spans), counters)
    specs = packing(config, tensors)
    model = empty_network(config, specs, slots)
    made_of, shapes = places(model), {name: a.shape for name, a in arrays(model).items()}
    shared = {name: parts for name, parts in made_of.items() if EXPERTS not in name}
    rows = {name: [tensors[part] for part in parts] for name, parts in shared.items()}
    total, done = sum(tensor.nbytes for parts in rows.values() for tensor in parts), 0
    for name, value in read_weights(rows, dtype):
        model.load_weights([(name, value)], strict=False)
        done += sum(tensor.nbytes for tensor in rows[name])
        if progress:
            progress(done, total)
    for name in made_of.keys() - shared.keys():
        stored = tensors[made_of[name][0]].dtype
        kept = weight_dtype(name, dtype) if mx.issubdtype(stored, mx.floating) else stored
        model.load_weights([(name, mx.zeros(shapes[name], kept))], strict=False)
    ready(model, packed_weights(config, tensors))
    mx.eval(arrays(model))
    mx.clear_cache()
    stream, layers = Stream(files, counters), []
    blocks: list[SparseMoE] = [layer.block_sparse_moe for layer in model.model.layers]
    for n, block in enumerate(blocks):
        module = cast(ResidentExperts, block.switch_mlp)
        prefix = f"model.layers.{n}{EXPERTS}"
        targets = [
            _target(array, made_of[prefix + name], tensors, specs)
            for name, array in arrays(module).items()
        ]
        experts = config.num_local_experts
        layers.append(StreamedExperts(block.gate, module, experts, targets, stream))
        block.switch_mlp = layers[-1]
    for layer, following, block in zip(layers, layers[1:], blocks[1:], strict=False):
        layer.next = (following, block.gate, read_ahead) if read_ahead else None
    files.check()
    model.waits = True
    return model, Streaming(tuple(slots), config.num_local_experts, stream)


def _target(
    array: mx.array, parts: Sequence[str], tensors: Tensors, specs: Mapping[str, QuantSpec | None]
) -> Target:
    stored = tensors[parts[0]].dtype
    if stored == array.dtype:
        return Target(array, [_sources(parts, tensors)])
    if mx.issubdtype(stored, mx.floating):
        return Target(array, [_sources(parts, tensors)], partial(_converted, array.dtype))
    paths = [part.removesuffix(".weight") for part in parts]
    kinds = [kind for kind in ("weight", "scales", "biases") if f"{paths[0]}.{kind}" in tensors]
    sources = [_sources([f"{path}.{kind}" for path in paths], tensors) for kind in kinds]
    spec = specs[paths[0]]
    return Target(array, sources, partial(_unpacked, cast(QuantSpec, spec)))


def _sources(parts: Sequence[str], tensors: Tensors) -> Sources:
    """Of several tensors, expert by expert, the rows one below the other."""
    return list(zip(*(tensors[part].parts() for part in parts), strict=True))


def _converted(dtype: mx.Dtype, tensors: Sequence[mx.array]) -> mx.array:
    return tensors[0].astype(dtype)


def _unpacked(spec: QuantSpec, tensors: Sequence[mx.array]) -> mx.array:
    """As ``cpu.fit_to_cpu`` unpacks what was loaded."""
    codes, *rest = tensors
    rest = [t.astype(mx.float32) if mx.issubdtype(t.dtype, mx.floating) else t for t in rest]
    biases = rest[1] if len(rest) > 1 else None
    how = (spec.group_size, spec.bits, spec.mode)
    return mx.dequantize(codes, rest[0], biases, *how, dtype=mx.float32)
