"""The scales and biases of MLX's affine format that lose least: more than min and max know.

A weight is stored as scale x code + bias, each group of a row with a scale and bias of its own.
Where the codes are given, the best scale and bias follow by least squares; where those are
given, the nearest codes are best. Between the two there are many optima, and min and max lead
to a bad one: an outlier widens the steps for all the others. So several clips of the group's
low and high end are tried, each with its least squares, and then smaller and smaller moves of
the best one. In the end codes are rounded against the scale and bias as they are stored, in 16
bits, and not as they were computed.

All arrays stand transposed, [groups, group size, rows], so that each operation runs along many
rows at once. The same lines run on NumPy and on MLX: ``xp`` is either module.
"""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

Array = Any
"""Of NumPy or of MLX, float32."""

_SPANS = {2: 0.7, 3: 0.6, 4: 0.5, 5: 0.4, 6: 0.3, 8: 0.1}
"""By bits: how much of the range clips may take away."""
_CLIPS = (
    *((clip / 6, clip / 6) for clip in range(6)),
    *((0, 0.4), (0.4, 0), (0.2, 0.7), (0.7, 0.2)),
    *((0.3, 0.5), (0.5, 0.3), (0.1, 0.3), (0.3, 0.1)),
)
"""Of the low and the high end, in spans."""
_MOVES = tuple(
    (step * low, step * high)
    for step in (1 / 8, 1 / 16, 1 / 32)
    for low, high in ((1, 0), (-1, 0), (0, 1), (0, -1))
)
"""Of the ends that are best so far, in spans."""
_TINY = 1e-30


class Fit(NamedTuple):
    """How groups are stored: codes [groups, group size, rows], the rest [groups, 1, rows]."""

    codes: Array
    scales: Array
    biases: Array


class _Best(NamedTuple):
    """The best that was found: ``gain`` is how much error its least squares takes away."""

    gain: Array
    low: Array
    high: Array
    scales: Array
    biases: Array


def fit(
    xp: Any,
    weights: Array,
    bits: int,
    dtype: mx.Dtype,
    known: tuple[Array, Array] | None = None,
    importance: Array | None = None,
) -> Fit:
    """The codes, scales and biases for groups of ``weights`` [groups, group size, rows].

    Args:
        xp: ``numpy`` or ``mlx.core``, whichever the arrays belong to.
        dtype: what scales and biases are stored in; they are returned in float32, rounded.
        known: scales and biases [groups, 1, rows] that are good already, such as those of
            ``mx.quantize``, as stored. Each group that would become worse keeps them.
        importance: of each column [groups, group size, 1]: the error of a weight counts so
            much. Columns of no importance at all have to have a little.
    """
    scales, biases = (stored(xp, a, dtype) for a in _search(xp, weights, bits, importance))
    ours = _rounded(xp, weights, scales, biases, bits)
    if known is None:
        return ours
    theirs = _rounded(xp, weights, *known, bits)
    better = _loss(weights, ours, importance) < _loss(weights, theirs, importance)
    return Fit(*(xp.where(better, a, b) for a, b in zip(ours, theirs, strict=True)))


def encode(xp: Any, weights: Array, scales: Array, biases: Array, bits: int) -> Array:
    """The nearest codes, 0 to 2**bits - 1, as floats."""
    steps = xp.where(abs(scales) < _TINY, 1, scales)
    return xp.clip(xp.round((weights - biases) / steps), 0, 2**bits - 1)


def stored(xp: Any, values: Array, dtype: mx.Dtype) -> Array:
    """float32 rounded to what ``dtype`` holds, still in float32."""
    if xp is mx:
        return values.astype(dtype).astype(mx.float32)
    if dtype == mx.bfloat16:  # the upper half of a float32, rounded to nearest, ties to even
        words = np.ascontiguousarray(values, np.float32).view(np.uint32)
        words = (words + 0x7FFF + ((words >> 16) & 1)) & np.uint32(0xFFFF0000)
        return words.view(np.float32)
    with np.errstate(over="ignore"):  # an infinite scale loses against any other
        return values.astype(np.float16).astype(np.float32) if dtype == mx.float16 else values


def _search(xp: Any, weights: Array, bits: int, importance: Array | None) -> tuple[Array, Array]:
    """Scales and biases, not yet rounded."""
    center = _mean(xp, weights, importance)
    centered = weights - center
    low, high = centered.min(axis=-2, keepdims=True), centered.max(axis=-2, keepdims=True)
    none = xp.zeros_like(low)
    best = _Best(none - 1, none, none, none, none)
    span = _SPANS[bits]
    for lower, higher in _CLIPS:
        ends = (1 - span * lower) * low, (1 - span * higher) * high
        best = _tried(xp, centered, bits, importance, best, *ends)
    for lower, higher in _MOVES:
        ends = best.low + span * lower * low, best.high + span * higher * high
        best = _tried(xp, centered, bits, importance, best, *ends)
    top = best.biases + (2**bits - 1) * best.scales
    best = _tried(xp, centered, bits, importance, best, best.biases, top)
    return best.scales, best.biases + center


def _tried(
    xp: Any, centered: Array, bits: int, importance: Array | None, best: _Best, low: Array,
    high: Array,
) -> _Best:  # fmt: skip
    """``best``, or in its place the least squares of the codes between ``low`` and ``high``."""
    levels = 2**bits - 1
    per_step = levels / xp.maximum(high - low, _TINY)
    codes = centered - low
    codes *= per_step  # in place in NumPy, which stays in the cache that way
    codes = xp.clip(xp.round(codes), 0, levels)
    weighted = codes if importance is None else codes * importance
    total = centered.shape[-2] if importance is None else importance.sum(axis=-2, keepdims=True)
    mean = weighted.sum(axis=-2, keepdims=True) / total
    variance = (weighted * codes).sum(axis=-2, keepdims=True) - mean * mean * total
    covariance = (weighted * centered).sum(axis=-2, keepdims=True)  # ``centered`` has mean 0
    scales = covariance / xp.maximum(variance, _TINY)
    new = _Best(covariance * scales, low, high, scales, -scales * mean)
    return _Best(*(xp.where(new.gain > best.gain, a, b) for a, b in zip(new, best, strict=True)))


def _rounded(xp: Any, weights: Array, scales: Array, biases: Array, bits: int) -> Fit:
    return Fit(encode(xp, weights, scales, biases, bits), scales, biases)


def _loss(weights: Array, fit: Fit, importance: Array | None) -> Array:
    error = weights - (fit.codes * fit.scales + fit.biases)
    squares = error * error
    weighted = squares if importance is None else squares * importance
    return weighted.sum(axis=-2, keepdims=True)


def _mean(xp: Any, values: Array, importance: Array | None) -> Array:
    if importance is None:
        return values.mean(axis=-2, keepdims=True)
    total = importance.sum(axis=-2, keepdims=True)
    return (values * importance).sum(axis=-2, keepdims=True) / total
