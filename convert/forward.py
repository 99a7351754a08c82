"""A layer's arithmetic, taken apart: what goes into each matrix can be looked at on the way.

The same network as ``mlx_mixtral.model`` in plain float32, one text's windows side by side.
NumPy multiplies, because its BLAS is the best there is on a CPU, of a Mac too.
"""

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from convert.readers.grid import Floats
from mlx_mixtral.config import ModelConfig


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x [T, D] -> [T, D]"""
    squares = np.einsum("td,td->t", x, x) / x.shape[1]
    normed: Floats = x * (1 / np.sqrt(squares + np.float32(eps)))[:, None] * weight
    return normed


def attend(q: Floats, k: Floats, v: Floats, config: ModelConfig) -> Floats:
    """One window's projections [L, heads x head_dim], not yet turned -> answers, like ``q``."""

    def heads(x: Floats) -> mx.array:
        return mx.unflatten(mx.array(x), -1, (-1, config.head_dim)).swapaxes(0, 1)[None]

    def turned(x: Floats) -> mx.array:
        return mx.fast.rope(
            heads(x), config.head_dim, traditional=False, base=config.rope_theta, scale=1.0,
            offset=0,
        )  # fmt: skip

    y = mx.fast.scaled_dot_product_attention(
        turned(q), turned(k), heads(v), scale=config.head_dim**-0.5, mask="causal"
    )
    return np.array(y[0].swapaxes(0, 1).flatten(1))


def route(logits: Floats, k: int) -> tuple[NDArray[np.int64], Floats]:
    """Logits [T, E] -> the k best experts of each token, best first, and their weights [T, k]."""
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(logits, chosen, axis=1)
    weights = np.exp(best - best[:, :1])
    return chosen, weights / weights.sum(axis=1, keepdims=True)


def swiglu(gate: Floats, up: Floats) -> Floats:
    """SiLU(gate) * up."""
    with np.errstate(over="ignore"):  # exp of much is infinite, and the quotient 0
        answer: Floats = gate / (1 + np.exp(-gate)) * up
    return answer
