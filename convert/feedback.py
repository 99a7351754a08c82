"""Rounding with error feedback: what one column of a matrix loses, others make up for.

For inputs x with second moments H = E[x x^T], a matrix W that is stored as Q answers wrong by
(W - Q) x: on average by tr((W - Q) H (W - Q)^T). One column after the other is rounded, each
after a share of the errors so far was added to it: the share that makes up for them best. This
is GPTQ (Frantar et al. 2022, arXiv:2210.17323) in the form of LDLQ, which is the same (Chee et
al. 2023, arXiv:2307.13304) and wants one Cholesky factor, and no inverse. With H = L L^T,

    tr((W - Q) H (W - Q)^T) = |(W - Q) L|^2,

and column k of (W - Q) L knows of no error before k: so the last column comes first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import numpy as np

from convert.affine import encode, fit
from convert.readers.grid import Floats
from convert.readers.packing import Codes
from mlx_mixtral.config import QuantSpec

DAMPING = 0.01
"""What is added to the diagonal of H, in shares of its mean: other texts have other inputs."""
_IN_CACHE = 1 << 18
_BLOCK = 256


@dataclass(frozen=True)
class Feedback:
    """What the inputs of a matrix say about its columns [in]."""

    shares: Floats
    """[in, in], below the diagonal: what share of a row's error is added to a column before it."""
    importance: Floats
    """[in]: how much an error counts that no column before makes up for."""

    @classmethod
    def of(cls, moments: Callable[[], Floats]) -> Feedback:
        """From H [in, in], or any multiple of it, which ``moments`` computes anew each time."""
        damping = np.float32(DAMPING)
        while True:
            factor = moments()
            diagonal = np.einsum("ii->i", factor)
            diagonal += damping * (diagonal.mean() or np.float32(1))
            try:
                _cholesky(factor)
            except np.linalg.LinAlgError:  # not positive, as far as float32 can tell
                damping *= 10
                continue
            own = diagonal.copy()
            factor /= own
            return cls(factor, own**2)


def _cholesky(matrix: Floats) -> None:
    """Put L, where L L^T is ``matrix``, in its lower triangle; what is above is left over.

    In place and mostly by matrix products: a tenth of the time of ``np.linalg.cholesky``, and a
    third of its memory, which at 14336 inputs is 2.5 GB.
    """
    for begin in range(0, len(matrix), _BLOCK):
        end = min(begin + _BLOCK, len(matrix))
        corner = np.linalg.cholesky(matrix[begin:end, begin:end])
        matrix[begin:end, begin:end] = corner
        below = matrix[end:, begin:end]
        below[:] = below @ np.linalg.inv(corner).T
        for row in range(end, len(matrix), _BLOCK):
            rows = slice(row, row + _BLOCK)
            matrix[rows, end : row + _BLOCK] -= matrix[rows, begin:end] @ (
                matrix[end : row + _BLOCK, begin:end].T
            )


def rounded(
    weights: Floats,
    feedback: Feedback,
    spec: QuantSpec,
    dtype: mx.Dtype,
    beat: Callable[[float], None] = lambda _: None,
) -> tuple[Codes, Floats, Floats]:
    """Codes [in, out], scales and biases [groups, out] for ``weights`` [in, out].

    ``dtype`` is what scales and biases are stored in; they are returned in float32, rounded.
    ``beat`` hears now and then what share of the work is done.
    """
    shares, size, last = feedback.shares, spec.group_size, len(weights)
    errors = np.empty_like(weights)
    codes = np.empty(weights.shape, np.uint8)
    scales = np.empty((last // size, weights.shape[1]), np.float32)
    biases = np.empty_like(scales)
    for group in reversed(range(last // size)):
        begin, end = group * size, (group + 1) * size
        targets = weights[begin:end] + shares[end:, begin:end].T @ errors[end:]
        scales[group], biases[group] = _fitted(
            targets, feedback.importance[begin:end], spec.bits, dtype
        )
        for k in reversed(range(begin, end)):
            target = targets[k - begin] + shares[k + 1 : end, k] @ errors[k + 1 : end]
            code = encode(np, target, scales[group], biases[group], spec.bits)
            codes[k] = code
            errors[k] = weights[k] - (code * scales[group] + biases[group])
        beat(1 - group / len(scales))
    return codes, scales, biases


def _fitted(
    targets: Floats, importance: Floats, bits: int, dtype: mx.Dtype
) -> tuple[Floats, Floats]:
    """Scales and biases [out] for one group of columns [group size, out], on all cores."""

    def part(begin: int) -> tuple[Floats, Floats]:
        with np.errstate(all="ignore"):  # what overflows is not chosen
            found = fit(
                np, targets[None, :, begin : begin + step], bits, dtype, None,
                importance[None, :, None],
            )  # fmt: skip
        return found.scales[0, 0], found.biases[0, 0]

    step = max(1, _IN_CACHE // len(targets))
    parts = list(_workers().map(part, range(0, targets.shape[1], step)))
    scales, biases = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return scales, biases


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())
