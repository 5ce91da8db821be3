"""Estimates with 95 % intervals for clustered items.

Held-out items are rarely independent: several pairs share a prompt, several prompts share an entity. Intervals that treat
them as independent are too short. Here, residuals are summed within clusters, and clusters are the independent units
(Miller 2024, "Adding Error Bars to Evals", arXiv:2411.00640, section 2.2), with the finite-sample factor C / (C - 1) and
Student's t with C - 1 degrees of freedom.

Shapes: ``n`` items, ``C`` clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from alignkit import Estimate
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats: TypeAlias = NDArray[np.float64]

LEVEL = 0.95
"""Coverage of every interval in this module."""

_ROUNDING = 1e-12
"""Standard errors below this are rounding errors of residuals that cancel."""


class RatioFit(NamedTuple):
    """A ratio of sums, its standard error (None for a single cluster), and the number of clusters."""

    value: float
    standard_error: float | None
    clusters: int

    def half_width(self, level: float = LEVEL) -> float | None:
        """Return half the width of the t interval, None for a single cluster."""
        if self.standard_error is None:
            return None
        return float(stats.t.ppf((1 + level) / 2, self.clusters - 1)) * self.standard_error

    def estimate(self) -> Estimate:
        """Return the ratio with its symmetric t interval, without an interval for a single cluster."""
        half = self.half_width()
        return Estimate(self.value) if half is None else Estimate(self.value, self.value - half, self.value + half)


def cluster_codes(clusters: Sequence[Hashable]) -> tuple[NDArray[np.intp], int]:
    """Return each item's cluster as an integer, ``[n]``, and the number of clusters C."""
    codes: dict[Hashable, int] = {}
    numbers = [codes.setdefault(name, len(codes)) for name in clusters]
    return np.asarray(numbers, dtype=np.intp), len(codes)


def fit_ratio(numerators: ArrayLike, denominators: ArrayLike, clusters: Sequence[Hashable]) -> RatioFit:
    r"""Estimate ``r = sum(a) / sum(b)`` and its cluster-robust standard error.

    The delta method linearises the ratio: ``e_i = a_i - r b_i``, so that

        se = sqrt( C / (C - 1) * sum_c (sum_{i in c} e_i)^2 ) / sum(b)

    With ``b = 1`` this is the clustered standard error of a mean, and with one item per cluster the usual ``s / sqrt(n)``.

    Args:
        numerators: ``a``, ``[n]``.
        denominators: ``b``, ``[n]``, with a positive sum.
        clusters: the cluster of each item, ``[n]``.

    Raises:
        ValueError: no items, different lengths, a value that is not finite, or denominators that sum to zero.

    Source: Miller 2024 (arXiv:2411.00640), equation 4 and appendix A; Cochran, Sampling Techniques (1977), section 6.3.
    """
    a, b = _finite("numerators", numerators), _finite("denominators", denominators)
    if not len(a) == len(b) == len(clusters):
        raise ValueError(
            f"{len(a)} numerators, {len(b)} denominators and {len(clusters)} clusters: the numbers must be equal"
        )
    total = float(b.sum())
    if total <= 0:
        raise ValueError("a ratio needs denominators with a positive sum")
    codes, count = cluster_codes(clusters)
    ratio = float(a.sum()) / total
    if count == 1:
        return RatioFit(ratio, None, count)
    residuals = np.bincount(codes, weights=a - ratio * b, minlength=count)  # (C,)
    variance = count / (count - 1) * float(residuals @ residuals)
    return RatioFit(ratio, math.sqrt(variance) / total, count)


def clustered_mean(values: ArrayLike, clusters: Sequence[Hashable]) -> Estimate:
    """Return the mean of ``values [n]`` with its clustered t interval.

    >>> clustered_mean([1.0, 2.0, 3.0], ["a", "b", "c"]).value
    2.0
    >>> clustered_mean([1.0, 2.0], ["a", "a"])  # the spread between clusters is unknown with one cluster
    Estimate(value=1.5, low=None, high=None)
    """
    a = np.asarray(values, dtype=np.float64)
    return fit_ratio(a, np.ones_like(a), clusters).estimate()


def clustered_proportion(credits: ArrayLike, clusters: Sequence[Hashable]) -> Estimate:
    """Return the mean of credits in [0, 1] with an interval inside [0, 1] that never has zero width.

    This is the clustered t interval where it lies inside [0, 1]. Where it would cross 0 or 1, or has zero width because
    all clusters have the same value (an accuracy of 1.0), it is Wilson's score interval at the effective sample size
    ``p (1 - p) / se^2``, at most n, and with zero standard error at one trial per cluster.

    Source: Wilson 1927; effective sample size as in Korn and Graubard 1998, Survey Methodology 24(2).
    """
    a = np.asarray(credits, dtype=np.float64)
    if len(a) and not (a.min() >= 0 and a.max() <= 1):
        raise ValueError("credits must lie in [0, 1]")
    fit = fit_ratio(a, np.ones_like(a), clusters)
    p, se, half = fit.value, fit.standard_error, fit.half_width()
    if se is None or half is None:
        return Estimate(p)
    if se > _ROUNDING and half <= min(p, 1 - p):
        return Estimate(p, p - half, p + half)
    trials = min(float(len(a)), p * (1 - p) / se**2) if se > _ROUNDING else float(fit.clusters)
    return Estimate(p, *wilson(p, trials))


def clustered_ratio(numerators: ArrayLike, denominators: ArrayLike, clusters: Sequence[Hashable]) -> Estimate:
    """Return ``sum(a) / sum(b)`` with its clustered t interval (see :func:`fit_ratio`).

    The negative log-likelihood per token is the logarithm of the corpus perplexity and is nearly normal on that scale:
    compute its interval and map the ends with :func:`transformed`.
    """
    return fit_ratio(numerators, denominators, clusters).estimate()


def transformed(estimate: Estimate, function: Callable[[float], float]) -> Estimate:
    """Apply an increasing function to an estimate and the ends of its interval.

    >>> transformed(Estimate(2.0, 1.0, 4.0), lambda x: 10 * x)
    Estimate(value=20.0, low=10.0, high=40.0)
    """
    return Estimate(*(None if x is None else function(x) for x in estimate))  # type: ignore[arg-type]


def wilson(proportion: float, trials: float, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval for a proportion of ``trials`` independent trials (not necessarily an integer).

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Source: Wilson 1927, Journal of the American Statistical Association 22(158).
    """
    z = float(stats.norm.ppf((1 + level) / 2))
    shrink = 1 + z * z / trials
    centre = (proportion + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(proportion * (1 - proportion) / trials + z * z / (4 * trials**2)) / shrink
    # At p = 0 or 1 one end equals p, also after rounding.
    return max(0.0, min(proportion, centre - half)), min(1.0, max(proportion, centre + half))


def _finite(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} must be a sequence of at least one number")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contain a value that is not finite")
    return array
