"""The feed-forward half of a layer: a router and its experts, or one dense network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from mlx_mixtral.config import ModelConfig

# The seam behind which experts may lie anywhere: tokens [T, D] and the experts that each
# of them chose [T, K] -> what each chosen expert answers [T, K, D].
Experts = Callable[[mx.array, mx.array], mx.array]


@partial(mx.compile, shapeless=True)
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


def swiglu(gate_up: mx.array) -> mx.array:
    """SiLU(gate) * up (Shazeer 2020, arXiv:2002.05202), [..., 2F] -> [..., F]: gate comes first."""
    product: mx.array = _swiglu(*mx.split(gate_up, 2, axis=-1))
    return product


def route(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k best experts of each token and their weights: top-k first, then softmax.

    Args:
        logits: [..., E], float32.
    Returns:
        indices [..., k], best first (of equals, the lower number: a stable sort, so that
        CPU and GPU agree), and weights [..., k] that sum to 1.
    """
    indices = mx.argsort(-logits, axis=-1)[..., :k]
    return indices, mx.softmax(mx.take_along_axis(logits, indices, axis=-1), axis=-1)


@partial(mx.compile, shapeless=True)
def _mix(answers: list[mx.array], weights: list[mx.array]) -> mx.array:
    y = answers[0] * weights[0]
    for answer, weight in zip(answers[1:], weights[1:], strict=True):
        y = y + answer * weight
    return y.astype(answers[0].dtype)


def mix(answers: mx.array, weights: mx.array) -> mx.array:
    """Answers [T, K, D], each times its weight [T, K], summed in float32 -> [T, D]."""
    k = weights.shape[-1]
    # A product and a sum over an axis would be two passes; these are one.
    mixed: mx.array = _mix(
        [answers[:, n] for n in range(k)], [weights[:, n : n + 1] for n in range(k)]
    )
    return mixed


class SparseMoE(nn.Module):
    """Mixtral's sparse mixture of experts (Jiang et al. 2024, arXiv:2401.04088).

    The router works in float32: two logits that differ in the last bits of a bfloat16
    would otherwise choose the wrong expert.
    """

    def __init__(self, config: ModelConfig, experts: Experts) -> None:
        super().__init__()
        self.k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_local_experts, bias=False)
        self.switch_mlp = experts

    def __call__(self, x: mx.array) -> mx.array:
        """[B, L, D] -> [B, L, D]"""
        tokens = x.flatten(0, -2)
        indices, weights = route(self.gate(tokens.astype(mx.float32)), self.k)
        return mix(self.switch_mlp(tokens, indices), weights).reshape(x.shape)


class DenseMLP(nn.Module):
    """The same network with one expert and no router (Mistral 7B)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, f = config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Linear(d, 2 * f, bias=False)
        self.down_proj = nn.Linear(f, d, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """[B, L, D] -> [B, L, D]"""
        return self.down_proj(swiglu(self.gate_up_proj(x)))
