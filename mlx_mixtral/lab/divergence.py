"""How far predictions are from the truth, and from another model's. NumPy, float64.

Errors are standard errors of the mean over tokens, taken as independent: neighbours are not
quite, so the true ones are a little larger. The figures are those of llama-perplexity's
``--kl-divergence``, whose names a reader may know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Numbers = np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Spread:
    """A divergence over tokens, in nats.

    Attributes:
        mean: with its standard error.
        median, p90, p95, p99: 50, 90, 95 and 99 % of the tokens lie at or below.
    """

    mean: Estimate
    median: float
    p90: float
    p95: float
    p99: float
    max: float


def mean(values: Numbers) -> Estimate:
    """[N] -> the mean; the error of a single value is unknown, and told as infinite."""
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Estimate(float(np.mean(values)), error)


def perplexity(nll: Numbers) -> Estimate:
    """Of the negative log-likelihoods of the tokens [N]: exp of their mean."""
    return _exp(mean(nll))


def ratio(nll: Numbers, reference: Numbers) -> Estimate:
    """A perplexity over the reference's on the same tokens [N].

    The error is that of the differences, far smaller than that of either perplexity: what is
    hard to predict is so for both.
    """
    return _exp(mean(nll - reference))


def spread(values: Numbers) -> Spread:
    """Of the divergence of each token [N]."""
    p50, p90, p95, p99 = (float(v) for v in np.percentile(values, [50, 90, 95, 99]))
    return Spread(mean(values), p50, p90, p95, p99, float(values.max()))


def _exp(of: Estimate) -> Estimate:
    value = math.exp(of.value)
    return Estimate(value, value * of.error)
