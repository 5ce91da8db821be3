"""Estimates with 95 % intervals for clustered items.

Held-out items are rarely independent: several pairs share a prompt, several prompts share an entity. Intervals that treat
them as independent are too short. Here, residuals are summed within clusters, and clusters are the independent units
(Miller 2024, "Adding Error Bars to Evals", arXiv:2411.00640, section 2.2), with the finite-sample factor C / (C - 1) and
Student's t with C - 1 degrees of freedom.

Shapes: ``K`` seeds, ``n`` items, ``C`` clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from alignkit import Estimate
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats: TypeAlias = NDArray[np.float64]

LEVEL = 0.95
"""Coverage of every interval in this module."""

_Z = float(special.ndtri((1 + LEVEL) / 2))

FEW_TRIALS = 300
"""Below this (effective) number of trials a proportion has the beta-binomial interval, from it on Wilson's."""

_ROUNDING = 1e-12
"""Standard errors below this are rounding errors of residuals that cancel."""


class RatioFit(NamedTuple):
    """A ratio of sums, its standard error (None for a single cluster), and the number of clusters."""

    value: float
    standard_error: float | None
    clusters: int

    @property
    def half_width(self) -> float:
        """Half the width of the t interval; infinite for a single cluster."""
        if self.standard_error is None:
            return math.inf
        return quantile((1 + LEVEL) / 2, self.clusters - 1) * self.standard_error


class Effect(NamedTuple):
    """A metric of an arm, or the difference of two arms, on each seed, and the influence of each item."""

    seeds: Floats
    """``[K]``"""
    influence: Floats
    """``[K, n]``; every row sums to zero"""
    share: Floats
    """``[n]``, the share of each item in the denominator"""

    def at(self, seeds: list[int]) -> Effect:
        """Return the effect of the seeds at these positions."""
        return Effect(self.seeds[seeds], self.influence[seeds], self.share)


def effect(numerators: ArrayLike, denominators: ArrayLike | None = None) -> Effect:
    """Return a metric's value on each seed, a ratio of sums, and the influence of each item on it.

    Args:
        numerators: ``a``, ``[K, n]``.
        denominators: ``b``, ``[K, n]`` with positive sums; None: 1 (the metric is a mean).

    Raises:
        ValueError: no values, different shapes, a value that is not finite, or a denominator that sums to zero.
    """
    a = np.asarray(numerators, dtype=np.float64)
    b = np.ones_like(a) if denominators is None else np.asarray(denominators, dtype=np.float64)
    if a.ndim != 2 or not a.size or a.shape != b.shape:
        raise ValueError(f"numerators {a.shape} and denominators {b.shape} must have the same shape [K, n]")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a value is not finite")
    totals = b.sum(1, keepdims=True)
    if not (totals > 0).all():
        raise ValueError("a ratio needs denominators with a positive sum")
    values = a.sum(1, keepdims=True) / totals
    return Effect(values[:, 0], (a - values * b) / totals, b.mean(0) / totals.mean())


def cluster_codes(clusters: Sequence[Hashable]) -> tuple[NDArray[np.intp], int]:
    """Return each item's cluster as an integer, ``[n]``, and the number of clusters C."""
    codes = {name: code for code, name in enumerate(dict.fromkeys(clusters))}
    return np.fromiter(map(codes.__getitem__, clusters), np.intp, len(clusters)), len(codes)


def cluster_sums(values: Floats, codes: NDArray[np.intp], count: int) -> Floats:
    """Return the sums of ``values [n]`` within clusters, ``[C]``."""
    return np.bincount(codes, weights=values, minlength=count).astype(np.float64)


def clustered_variance(influence: Floats, codes: NDArray[np.intp], count: int) -> float:
    """Return ``C / (C - 1) sum_c (sum_{i in c} phi_i)^2`` of the items' influence ``phi [n]``, for two or more clusters."""
    by_cluster = cluster_sums(influence, codes, count)
    return count / (count - 1) * float(by_cluster @ by_cluster)


def fit_ratio(numerators: ArrayLike, denominators: ArrayLike, clusters: Sequence[Hashable]) -> RatioFit:
    r"""Estimate ``r = sum(a) / sum(b)`` and its cluster-robust standard error.

    The delta method linearises the ratio: ``e_i = a_i - r b_i``, so that

        se = sqrt( C / (C - 1) * sum_c (sum_{i in c} e_i)^2 ) / sum(b)

    With ``b = 1`` this is the clustered standard error of a mean, and with one item per cluster the usual ``s / sqrt(n)``.

    Numerators ``a``, denominators ``b`` with a positive sum, and clusters are ``[n]``; raises as :func:`effect`.

    Source: Miller 2024 (arXiv:2411.00640), equation 4 and appendix A; Cochran, Sampling Techniques (1977), section 6.3.
    """
    a, b = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if not len(a):
        raise ValueError("numerators must be a sequence of at least one number")
    if not len(a) == len(b) == len(clusters):
        raise ValueError(
            f"{len(a)} numerators, {len(b)} denominators and {len(clusters)} clusters: the numbers must be equal"
        )
    found = effect(a[None], b[None])
    codes, count = cluster_codes(clusters)
    error = math.sqrt(clustered_variance(found.influence[0], codes, count)) if count > 1 else None
    return RatioFit(float(found.seeds[0]), error, count)


def clustered_mean(values: ArrayLike, clusters: Sequence[Hashable]) -> Estimate:
    """Return the mean of ``values [n]`` with its clustered t interval.

    >>> clustered_mean([1.0, 2.0, 3.0], ["a", "b", "c"]).value
    2.0
    >>> clustered_mean([1.0, 2.0], ["a", "a"])  # the spread between clusters is unknown with one cluster
    Estimate(value=1.5, low=None, high=None)
    """
    return clustered_ratio(values, np.ones(np.shape(values)), clusters)


def clustered_proportion(credits: ArrayLike, clusters: Sequence[Hashable]) -> Estimate:
    """Return the mean of scores in [0, 1] with :func:`bounded_estimate`'s interval, which never has zero width.

    Items of 0 and 1 count as at most one trial each, and as one where each is its own cluster.
    """
    a = np.asarray(credits, dtype=np.float64)
    if len(a) and not (a.min() >= 0 and a.max() <= 1):
        raise ValueError("credits must lie in [0, 1]")
    fit = fit_ratio(a, np.ones_like(a), clusters)
    if fit.standard_error is None:
        return Estimate(fit.value)
    plain = bool(np.isin(a, (0, 1)).all())
    if plain and fit.clusters == len(a):
        return Estimate(fit.value, *proportion_interval(fit.value, len(a)))
    most = len(a) if plain else math.inf
    t = quantile((1 + LEVEL) / 2, fit.clusters - 1)
    return Estimate(*bounded_estimate(fit.value, fit.standard_error, t, fit.clusters, most=most))


def clustered_score(values: ArrayLike, clusters: Sequence[Hashable]) -> Estimate:
    """Return the mean of ``values [n]``: a proportion's interval where all lie in [0, 1], else the t interval."""
    a = np.asarray(values, dtype=np.float64)
    return (clustered_proportion if a.min() >= 0 and a.max() <= 1 else clustered_mean)(a, clusters)


def bounded_estimate(
    value: float,
    error: float,
    t: float,
    clusters: int,
    bounds: tuple[float, float] = (0.0, 1.0),
    *,
    most: float = math.inf,
) -> tuple[float, float, float]:
    """Return the value of a bounded score with a proportion's interval at its effective sample size, inside the bounds.

    With p and its standard error on the scale from 0 to 1, the effective sample size is ``p (1 - p) / se^2 * (z / t)^2``, with
    half the interval's width in standard errors, ``t``, and at most ``most``. Where all clusters have the same
    value (an accuracy of 1.0), it is the number of clusters.

    Source: Korn and Graubard 1998, Survey Methodology 24(2).
    """
    low, width = bounds[0], bounds[1] - bounds[0]
    p, se = min(1.0, max(0.0, (value - low) / width)), error / width
    trials = float(clusters)
    if se > _ROUNDING and 0 < p < 1:
        trials = min(most, p * (1 - p) / se**2 * (_Z / t) ** 2)
    lower, upper = proportion_interval(p, trials)
    return value, low + width * lower, low + width * upper


def quantile(probability: float, freedom: float) -> float:
    """Return a quantile of Student's t."""
    return float(special.stdtrit(freedom, probability))


def nonnegative(estimate: Estimate) -> Estimate:
    """Cut the interval of a quantity that is never negative at 0.

    >>> nonnegative(Estimate(0.1, -0.2, 0.4))
    Estimate(value=0.1, low=0.0, high=0.4)
    """
    return estimate if estimate.low is None else estimate._replace(low=max(0.0, estimate.low))


def clustered_ratio(numerators: ArrayLike, denominators: ArrayLike, clusters: Sequence[Hashable]) -> Estimate:
    """Return ``sum(a) / sum(b)`` with its clustered t interval (see :func:`fit_ratio`).

    The negative log-likelihood per token is the logarithm of the corpus perplexity and is nearly normal on that scale:
    compute its interval and map the ends with :func:`transformed`.
    """
    fit = fit_ratio(numerators, denominators, clusters)
    if fit.standard_error is None:
        return Estimate(fit.value)
    return Estimate(fit.value, fit.value - fit.half_width, fit.value + fit.half_width)


def transformed(estimate: Estimate, function: Callable[[float], float]) -> Estimate:
    """Apply an increasing function to an estimate and the ends of its interval.

    >>> transformed(Estimate(2.0, 1.0, 4.0), lambda x: 10 * x)
    Estimate(value=20.0, low=10.0, high=40.0)
    """
    return Estimate(*(None if x is None else function(x) for x in estimate))  # type: ignore[arg-type]


def proportion_interval(proportion: float, trials: float) -> tuple[float, float]:
    """Return the interval of a proportion of ``trials`` independent trials (not necessarily an integer).

    Below :data:`FEW_TRIALS` it is beta-binomial: quantiles of the posterior ``Beta(1 + k, 1 + n - k)`` of ``k = p n`` successes after
    a uniform prior, which hold what normal approximations miss with few items. From it on it is :func:`wilson`'s. An end is 0 or 1
    where all trials failed or succeeded.

    Source: Bowyer, Aitchison and Ivanova 2025, "Position: Don't Use the CLT in LLM Evals With Fewer Than a Few Hundred
    Datapoints", arXiv:2503.01747, section 3.
    """
    if trials >= FEW_TRIALS:
        return wilson(proportion, trials)
    hits, tail = proportion * trials, (1 - LEVEL) / 2
    low, high = special.betaincinv(1 + hits, 1 + trials - hits, (tail, 1 - tail))
    return min(proportion, float(low)) if proportion else 0.0, max(proportion, float(high)) if proportion < 1 else 1.0


def wilson(proportion: float, trials: float) -> tuple[float, float]:
    """Return Wilson's score interval for a proportion of ``trials`` independent trials (not necessarily an integer).

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Source: Wilson 1927, Journal of the American Statistical Association 22(158).
    """
    z = _Z
    shrink = 1 + z * z / trials
    centre = (proportion + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(proportion * (1 - proportion) / trials + z * z / (4 * trials**2)) / shrink
    # At p = 0 or 1 one end equals p, also after rounding.
    return max(0.0, min(proportion, centre - half)), min(1.0, max(proportion, centre + half))
