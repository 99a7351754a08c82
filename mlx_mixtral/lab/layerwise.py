"""A model whose layers are in memory one at a time, and all that happens inside of a layer.

A 16-bit Mixtral has 93 GB; measuring it needs a layer's 2.9 GB and the hidden states of the
text. What a layer does is spelled out here so that its parts can be watched and replaced; that
it is the same as the model's own forward pass is a test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_mixtral.config import read_config
from mlx_mixtral.cpu import fit_to_cpu
from mlx_mixtral.lab.windows import Pack
from mlx_mixtral.model.attention import Mask
from mlx_mixtral.model.moe import route
from mlx_mixtral.model.transformer import Layer
from mlx_mixtral.network import (
    activation_dtype,
    empty_network,
    on_cpu,
    packing,
    places,
    read_weights,
    ready,
)
from mlx_mixtral.weights import expected_shapes, open_weights

AT_ONCE = 256
"""Predictions in memory at a time."""


class Routing(NamedTuple):
    """The experts of each token [T, K], best first, and their weights [T, K]."""

    experts: mx.array
    weights: mx.array


@dataclass(frozen=True)
class Step:
    """What one layer made of a pack of windows.

    Attributes:
        output: hidden states [T, D].
        inner: what the experts read [T, D].
        routing, answers: who was asked, and each answer [T, K, D]; None in a dense model.
    """

    output: mx.array
    inner: mx.array
    routing: Routing | None = None
    answers: mx.array | None = None


class Layerwise:
    """A model folder, to be read from its first layer to its last, once.

    Attributes:
        config: its shapes.
        nbytes: bytes of weights to be read.
        parameters: how many weights they stand for.

    Raises:
        ModelError: see ``open_weights``; everything is checked before any weight is read.
    """

    def __init__(self, folder: Path) -> None:
        self.config = read_config(folder)
        self._tensors = open_weights(folder, self.config)
        self.dtype = activation_dtype(self._tensors["model.norm.weight"].dtype)
        # Nothing of the empty network is evaluated: it takes no memory.
        network = empty_network(self.config, packing(self.config, self._tensors))
        self._places = places(network)
        self.nbytes = sum(tensor.nbytes for tensor in self._tensors.values())
        self.parameters = sum(math.prod(s) for s in expected_shapes(self.config).values())
        self._layers = dict(enumerate(network.model.layers))
        network.model.layers = []
        for prefix in ("model.embed_tokens.", "model.norm.", "lm_head."):
            self._load(network, "", prefix)
        self._network = ready(network)

    def embed(self, pack: Pack) -> mx.array:
        """[T, D], evaluated."""
        hidden: mx.array = self._network.model.embed_tokens(mx.array(pack.ids))
        mx.eval(hidden)
        return hidden

    def layer(self, number: int) -> tuple[Layer, int]:
        """A layer with its weights in memory, and their bytes; it lives as long as the caller
        holds it, and is not to be had again."""
        layer = self._layers.pop(number)
        nbytes = self._load(layer, f"model.layers.{number}.")
        if on_cpu():
            fit_to_cpu(layer)
        return layer, nbytes

    def predictions(self, hidden: mx.array, pack: Pack) -> Iterator[tuple[slice, mx.array]]:
        """What the last layer's output [T, D] predicts for the tokens that count.

        Yields a part of them at a time: which ones, and the natural logarithms of the
        probabilities [part, vocabulary], float32. All of a window of Mixtral's take 131 MB.
        """
        states = self._network.model.norm(hidden[mx.array(pack.rows)])
        for begin in range(0, pack.count, AT_ONCE):
            part = slice(begin, min(begin + AT_ONCE, pack.count))
            logits = self._network.head(states[None, part])[0].astype(mx.float32)
            yield part, logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def masks(self, pack: Pack) -> list[Mask]:
        """Of each window: which of its tokens see which."""
        return [self._network._mask(len(window.ids)) for window in pack.windows]

    def _load(self, module: nn.Module, path: str, prefix: str = "") -> int:
        """Read the weights below ``path`` + ``prefix`` into the module that lies at ``path``."""
        rows = {
            name: [self._tensors[part] for part in parts]
            for name, parts in self._places.items()
            if name.startswith(path + prefix)
        }
        for name, value in read_weights(rows, self.dtype):
            module.load_weights([(name.removeprefix(path), value)], strict=False)
        mx.clear_cache()
        return sum(tensor.nbytes for tensors in rows.values() for tensor in tensors)


def step(
    layer: Layer,
    hidden: mx.array,
    pack: Pack,
    masks: Sequence[Mask],
    routing: Routing | None = None,
) -> Step:
    """One layer on the hidden states [T, D] of a pack.

    Args:
        routing: experts to ask in place of those that the layer's own router chooses.
    """
    normed = layer.input_layernorm(hidden[None])
    places = zip(pack.places, masks, strict=True)
    attended = [layer.self_attn(normed[:, place], mask, None)[0] for place, mask in places]
    hidden = hidden + mx.concatenate(attended)
    inner = layer.post_attention_layernorm(hidden)
    if "block_sparse_moe" not in layer:
        return Step(hidden + layer.mlp(inner), inner)
    if routing is None:
        routing = choose(layer, inner)
    answers = layer.block_sparse_moe.switch_mlp(inner, routing.experts)
    mixed = (answers * routing.weights[..., None].astype(answers.dtype)).sum(axis=-2)
    return Step(hidden + mixed, inner, routing, answers)


def choose(layer: Layer, inner: mx.array) -> Routing:
    """What the layer's router makes of [T, D]."""
    moe = layer.block_sparse_moe
    return Routing(*route(moe.gate(inner.astype(mx.float32)), moe.k))
