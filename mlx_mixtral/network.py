"""An empty network, and which weights belong where in it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_mixtral.config import ModelConfig, QuantSpec
from mlx_mixtral.cpu import SpreadExperts, fit_to_cpu, second_stream
from mlx_mixtral.experts.resident import ResidentExperts, StackedLinear
from mlx_mixtral.model.joined import JOINED, SideBySide
from mlx_mixtral.model.transformer import Transformer
from mlx_mixtral.shards import Shards
from mlx_mixtral.weights import Tensor, expected_shapes

Specs = Mapping[str, QuantSpec | None]
"""How the matrix of each canonical path is packed; None or absent: it is not."""

_LAYER = re.compile(r"(model\.layers\.\d+\.)(.+?)(?:\.maps\.(\d+))?")


def empty_network(
    config: ModelConfig, specs: Specs, slots: Sequence[int] | None = None
) -> Transformer:
    """A network for weights to be loaded into, as this device computes it best.

    Args:
        slots: for each layer, room for so many experts; None: for all.
    """
    experts = SpreadExperts if on_cpu() else ResidentExperts

    def make(layer: int) -> ResidentExperts:
        return experts(config, slots[layer] if slots else None)

    model = Transformer(config, make if config.is_moe else None)
    _set_apart(model, config, specs)
    nn.quantize(model, class_predicate=_predicate(specs))
    return model


def places(model: Transformer) -> dict[str, tuple[str, ...]]:
    """Each array of an empty network, and the canonical tensors whose rows it takes, in order."""
    found = {}
    for name in arrays(model):
        path, _, kind = name.rpartition(".")
        found[name] = tuple(f"{part}.{kind}" for part in _parts(path))
    return found


def arrays(module: Any) -> dict[str, mx.array]:
    """All arrays of an MLX module by name, whatever it is wrapped in on this device."""
    found: dict[str, mx.array] = dict(tree_flatten(module.parameters()))
    return {name.replace(".linear.", "."): array for name, array in found.items()}


def packing(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Specs:
    """How the matrices are packed that a folder holds packed."""
    packed = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    return {path: config.quantization.of(path) for path in packed} if config.quantization else {}


def read_weights(
    wanted: Mapping[str, Sequence[Tensor]], dtype: mx.Dtype
) -> Iterator[tuple[str, mx.array]]:
    """Arrays by name and the tensors whose rows they take, in memory one after the other.

    The largest come first: what is joined or converted is in memory twice for a moment, and
    that is when there is the most room.

    Args:
        dtype: what the network computes in.

    Raises:
        ModelError: a file cannot be read.
    """
    # One is read while the one before it is joined.
    lanes: list[Any] = [mx.default_device()]
    if on_cpu():
        lanes.append(second_stream())
    shards, begun = Shards(), deque[tuple[str, mx.array]]()
    largest_first = sorted(wanted.items(), key=lambda item: -sum(t.nbytes for t in item[1]))
    for n, (name, tensors) in enumerate(largest_first):
        with mx.stream(lanes[n % len(lanes)]):
            value = _joined([tensor.read(shards) for tensor in tensors])
            if mx.issubdtype(value.dtype, mx.floating):
                value = value.astype(weight_dtype(name, dtype))
        mx.async_eval(value)
        begun.append((name, value))
        if n:
            yield _arrived(*begun.popleft())
    for last in begun:
        yield _arrived(*last)


def _joined(arrays: list[mx.array]) -> mx.array:
    return mx.concatenate(arrays, axis=-2) if len(arrays) > 1 else arrays[0]


def _arrived(name: str, value: mx.array) -> tuple[str, mx.array]:
    mx.eval(value)
    return name, value


def ready(model: Transformer, packed: int | None = None) -> Transformer:
    """The network, once its weights are loaded.

    Args:
        packed: how many of the model's weights are packed, where not all of them are in memory.
    """
    if on_cpu():
        fit_to_cpu(model, packed)
    model.freeze()
    return model


def on_cpu() -> bool:
    """Whether MLX computes without a GPU."""
    return mx.default_device() == mx.Device(mx.cpu)


def activation_dtype(stored: mx.Dtype) -> mx.Dtype:
    """What to compute in, given the checkpoint's 16-bit type.

    A GPU computes in bfloat16, which Mixtral was trained in; a float16 checkpoint stays
    float16, because its quantization scales would lose three bits. MLX's CPU backend sums
    16-bit products in 16 bits (5-7 % wrong), multiplies experts in float32 only, and is
    ten times slower with 16-bit scales: there everything is float32.
    """
    if on_cpu():
        return mx.float32
    return mx.float16 if stored == mx.float16 else mx.bfloat16


def weight_dtype(name: str, dtype: mx.Dtype) -> mx.Dtype:
    """The router is kept in float32, in which it computes; the rest in the activations' type."""
    return mx.float32 if ".block_sparse_moe.gate." in name else dtype


def _parts(path: str) -> tuple[str, ...]:
    """The canonical paths of the maps that lie in the module at ``path``."""
    match = _LAYER.fullmatch(path)
    if not match or match[2] not in JOINED:
        return (path,)
    layer, joined, number = match.groups()
    parts = tuple(layer + part for part in JOINED[joined])
    return parts if number is None else (parts[int(number)],)


def _set_apart(model: Transformer, config: ModelConfig, specs: Specs) -> None:
    """Part the joined maps that are packed differently."""
    shapes = expected_shapes(config)
    modules: dict[str, nn.Module] = dict(model.named_modules())  # type: ignore[no-untyped-call]
    for path, module in modules.items():
        parts = _parts(path)
        if len({specs.get(part) for part in parts}) > 1:
            maps = [_linear(module, shapes[part]) for part in parts]
            parent, _, name = path.rpartition(".")
            modules[parent][name] = SideBySide(maps)


def _linear(like: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    rows, width = shape[-2:]
    if isinstance(like, StackedLinear):
        return StackedLinear(like.weight.shape[0], width, rows)
    return nn.Linear(width, rows, bias=False)


def _predicate(specs: Specs) -> Callable[[str, nn.Module], bool | dict[str, int | str]]:
    def spec(path: str, module: nn.Module) -> bool | dict[str, int | str]:
        found = specs.get(_parts(path)[0])
        return found.to_dict() if found else False

    return spec
