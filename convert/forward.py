"""A layer's arithmetic, taken apart: what goes into each matrix can be looked at on the way.

The same network as ``mlx_mixtral.model`` in plain float32. NumPy multiplies: its BLAS is a good
one everywhere, and MLX's own on Linux is not.
"""

import numpy as np
from numpy.typing import NDArray

from convert.readers.grid import Floats
from mlx_mixtral.config import ModelConfig


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x [T, D] -> [T, D]"""
    squares = np.einsum("td,td->t", x, x) / np.float32(x.shape[1])
    normed: Floats = x * (1 / np.sqrt(squares + np.float32(eps)))[:, None] * weight
    return normed


def attend(q: Floats, k: Floats, v: Floats, config: ModelConfig) -> Floats:
    """One window's projections [L, heads x head_dim], not yet turned -> answers, like ``q``."""
    length, dim, groups = len(q), config.head_dim, config.num_key_value_heads
    angles = np.outer(np.arange(length), config.rope_theta ** (-np.arange(0, dim, 2) / dim))
    turns = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    queries = _turned(_heads(q, dim), *turns).reshape(groups, -1, length, dim)
    keys, values = _turned(_heads(k, dim), *turns), _heads(v, dim)
    scores = queries @ (keys * np.float32(dim**-0.5)).swapaxes(1, 2)[:, None]
    scores[..., ~np.tri(length, dtype=bool)] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    answers: Floats = (scores @ values[:, None]).reshape(-1, length, dim)
    return answers.swapaxes(0, 1).reshape(length, -1)


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


def _heads(x: Floats, dim: int) -> Floats:
    """[L, heads x dim] -> [heads, L, dim]"""
    return x.reshape(len(x), -1, dim).swapaxes(0, 1)


def _turned(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """RoPE on the pairs (i, i + half) of x [heads, L, dim]; the turns are [L, dim / 2]."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
