"""What a quantized layer does worse than the reference's layer.

An error is the mean over tokens of |ours - reference's| / |reference's|, lengths of vectors: a
mean of ratios, because a few tokens have hidden states a thousand times as long as the others'
(Sun et al. 2024, arXiv:2402.17762) and would be all that a ratio of sums sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_mixtral.lab.layerwise import Step, choose, step
from mlx_mixtral.lab.windows import Pack
from mlx_mixtral.model.attention import Mask
from mlx_mixtral.model.transformer import Layer


@dataclass(frozen=True)
class ExpertDamage:
    """One expert, given what the reference gave its own.

    Attributes:
        tokens: how many of the watched tokens the reference's router sent to it.
        error: of its answers to them; None where there were none.
    """

    tokens: int
    error: float | None


@dataclass(frozen=True)
class LayerDamage:
    """One layer.

    Attributes:
        own: error of the hidden state after the layer, given the reference's before it.
        cumulated: the same after all layers so far, each given what the one before it made.
        router_own, router_cumulated: the share of tokens for which the router chooses the
            reference's experts, given what the reference's router reads, and as it runs.
            None in a dense model.
    """

    own: float
    cumulated: float
    router_own: float | None = None
    router_cumulated: float | None = None
    experts: tuple[ExpertDamage, ...] = ()


class Watch:
    """Gathers a layer's damage, pack by pack.

    Args:
        states: of the reference, for the watched packs one after the other: ``input`` and
            ``output`` [T, D]; in a mixture of experts ``inner`` [T, D], ``experts`` [T, K]
            and ``answers`` [T, K, D].
    """

    def __init__(self, layer: Layer, states: dict[str, mx.array]) -> None:
        self._layer, self._states, self._at = layer, states, 0
        self._own: list[mx.array] = []
        self._cumulated: list[mx.array] = []
        self._same: list[mx.array] = []

    def see(self, made: Step, pack: Pack, masks: Sequence[Mask]) -> None:
        """The next watched pack, and what the model made of it as it ran."""
        part = slice(self._at, self._at + len(made.output))
        self._at = part.stop
        wanted = self._states["output"][part]
        given = step(self._layer, self._states["input"][part], pack, masks).output
        self._own.append(relative(given, wanted))
        self._cumulated.append(relative(made.output, wanted))
        mx.eval(self._own[-1], self._cumulated[-1])
        if made.routing is not None:
            self._same.append(_same(made.routing.experts, self._states["experts"][part]))
            mx.eval(self._same[-1])

    def damage(self) -> LayerDamage:
        """Of all packs seen."""
        own, cumulated = _mean(self._own), _mean(self._cumulated)
        if not self._same:
            return LayerDamage(own, cumulated)
        experts = self._states["experts"]
        chosen = choose(self._layer, self._states["inner"]).experts
        router = _mean([_same(chosen, experts)])
        return LayerDamage(own, cumulated, router, _mean(self._same), self._experts(experts))

    def _experts(self, experts: mx.array) -> tuple[ExpertDamage, ...]:
        moe = self._layer.block_sparse_moe
        answers = moe.switch_mlp(self._states["inner"], experts.astype(mx.uint32))
        errors = np.array(relative(answers, self._states["answers"]))
        asked = np.array(experts)
        found = [errors[asked == number] for number in range(moe.gate.weight.shape[0])]
        return tuple(
            ExpertDamage(len(e), float(np.mean(e, dtype=np.float64)) if len(e) else None)
            for e in found
        )


def relative(found: mx.array, wanted: mx.array) -> mx.array:
    """|found - wanted| / |wanted| along the last axis, float32; 0 where both are 0."""
    found, wanted = found.astype(mx.float32), wanted.astype(mx.float32)
    difference = mx.linalg.norm(found - wanted, axis=-1)
    return difference / mx.maximum(mx.linalg.norm(wanted, axis=-1), 1e-30)


def _same(a: mx.array, b: mx.array) -> mx.array:
    """Whether the same experts are chosen [T], in whatever order, of [T, K] both."""
    ordered = mx.sort(a.astype(mx.uint32), axis=-1) == mx.sort(b.astype(mx.uint32), axis=-1)
    return mx.all(ordered, axis=-1)


def _mean(parts: list[mx.array]) -> float:
    return float(np.mean(np.concatenate([np.array(p) for p in parts]), dtype=np.float64))
