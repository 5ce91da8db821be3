r"""The difference between two arms on the same items: its interval, its p, and the smallest difference that would show.

Every metric is a ratio of sums over items, ``theta = sum(a) / sum(b)`` (``b = 1`` for a mean). Its linearisation gives each
item an influence ``phi_i = (a_i - theta b_i) / sum(b)``, and the influence of the paired difference of two arms is the
difference of theirs. Two kinds of chance are in it: which items were drawn, and which seeds.

    delta   = mean_k delta_k                                     over K pairs of runs, one a seed
    V_items = C / (C - 1) sum_c (sum_{i in c} mean_k phi_ik)^2   clusters c of items (Miller 2024, arXiv:2411.00640)
    V_seeds = s^2(delta_k) / K                                   nothing where K = 1

With two or more seeds ``t = delta / sqrt(V_items + V_seeds)`` has Satterthwaite's degrees of freedom,
``(V_items + V_seeds)^2 / (V_items^2 / (C - 1) + V_seeds^2 / (K - 1))``, at most ``4 (K - 1)``: with few seeds ``V_seeds`` is
often far too small by chance, and t would then be judged by the many degrees of the items (with two seeds that are three
times as noisy as the items, a true null is rejected in 9 % of trials without the bound). The items' noise that differs
between seeds is in both terms, so that the test errs on the careful side where seeds are quiet; where their part of the
variance is more than some four times the items', two or three seeds still reject too often. With one seed the interval is a clustered t interval and p comes from
flipping the signs of whole clusters; both are conditional on that seed. Where every cluster and every seed shows exactly
the same difference there is no spread for a t statistic, and the flips judge as well.

Shapes: ``K`` seeds, ``n`` items, ``C`` clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from alignkit_eval.statistics import LEVEL, Floats, cluster_codes

POWER = 0.8
"""Chance with which the smallest detectable difference is found."""

_EXACT = 12
"""Up to this many clusters all 2^C flips of their signs are tried."""

_FLIPS = 20_000
"""Flips drawn at random where there are more clusters."""

_FREEDOM_PER_SEED = 4
"""Most degrees of freedom that each seed after the first one vouches for."""

_BLOCK = 1_000_000
"""Signs held at once: memory does not grow with the number of clusters."""

_ROUNDING = 1e-12
"""A standard error below this is rounding, not spread."""


_T_TEST, _FLIP_TEST = "t, Satterthwaite", "cluster sign-flip"


class Effect(NamedTuple):
    """What an arm's metric, or the difference of two, is on each seed, and each item's influence on it."""

    seeds: Floats
    """``[K]``"""
    influence: Floats
    """``[K, n]``, rows that sum to zero"""
    share: Floats
    """``[n]``, each item's share of the denominator"""


class Difference(NamedTuple):
    """A difference with its 95 % interval and p; None where there is nothing to judge by."""

    diff: float
    low: float | None
    high: float | None
    p: float | None
    detectable: float | None
    n: int
    clusters: int
    seeds: int
    test: str


def effect(numerators: ArrayLike, denominators: ArrayLike | None = None) -> Effect:
    """Return a metric's value on each seed and the influence of each item.

    Args:
        numerators: ``a``, ``[K, n]``.
        denominators: ``b``, ``[K, n]`` with positive sums; None: 1 (the metric is a mean).

    Raises:
        ValueError: nothing given, shapes that differ, or a value that is not finite.
    """
    a = np.asarray(numerators, dtype=np.float64)
    b = np.ones_like(a) if denominators is None else np.asarray(denominators, dtype=np.float64)
    if a.ndim != 2 or not a.size or a.shape != b.shape:
        raise ValueError(f"numerators {a.shape} and denominators {b.shape} must have one shape [K, n]")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a value is not finite")
    totals = b.sum(1, keepdims=True)
    if not (totals > 0).all():
        raise ValueError("a ratio needs denominators with a positive sum")
    values = a.sum(1, keepdims=True) / totals
    return Effect(values[:, 0], (a - values * b) / totals, b.mean(0) / totals.mean())


def minus(arm: Effect, baseline: Effect) -> Effect:
    """Return the paired difference of two arms, seed by seed and item by item."""
    return Effect(arm.seeds - baseline.seeds, arm.influence - baseline.influence, (arm.share + baseline.share) / 2)


def judge(difference: Effect, clusters: Sequence[Hashable]) -> Difference:
    """Return the interval, p and detectable difference of an effect (see the module's description).

    >>> judge(effect([[0.0, 0.0, 0.0]]), ["a", "b", "c"])[:4]  # all ties: certain, and no difference
    (0.0, 0.0, 0.0, 1.0)
    >>> judge(effect([[0.5, 0.5]]), ["a", "a"])[:4]  # one cluster says nothing about its own spread
    (0.5, None, None, None)
    """
    count, n = len(difference.seeds), difference.influence.shape[1]
    codes, number = cluster_codes(clusters)
    if len(codes) != n:
        raise ValueError(f"{len(codes)} clusters for {n} items")
    diff = float(difference.seeds.mean())
    about = (n, number, count)
    if number == 1:
        return Difference(diff, None, None, None, None, *about, _T_TEST if count > 1 else _FLIP_TEST)
    error, freedom = _standard_error(difference, codes, number)
    if error <= _ROUNDING and abs(diff) <= _ROUNDING:
        return Difference(diff, diff, diff, 1.0, None, *about, _T_TEST if count > 1 else _FLIP_TEST)
    if error <= _ROUNDING:
        return Difference(diff, None, None, _sign_flip(difference, codes, number), None, *about, _FLIP_TEST)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    detectable = half + float(stats.t.ppf(POWER, freedom)) * error
    if count > 1:
        p, test = float(2 * stats.t.sf(abs(diff) / error, freedom)), _T_TEST
    else:
        p, test = _sign_flip(difference, codes, number), _FLIP_TEST
    return Difference(diff, diff - half, diff + half, p, detectable, *about, test)


def _standard_error(difference: Effect, codes: np.ndarray, number: int) -> tuple[float, float]:
    """Return the standard error over items and seeds, and its degrees of freedom."""
    by_cluster = np.bincount(codes, weights=difference.influence.mean(0), minlength=number)  # (C,)
    items = number / (number - 1) * float(by_cluster @ by_cluster)
    count = len(difference.seeds)
    if count == 1:
        return math.sqrt(items), number - 1
    seeds = float(difference.seeds.var(ddof=1)) / count
    total = items + seeds
    if total <= 0:
        return 0.0, number - 1
    freedom = total**2 / (items**2 / (number - 1) + seeds**2 / (count - 1))
    return math.sqrt(total), min(freedom, _FREEDOM_PER_SEED * (count - 1))


def _sign_flip(difference: Effect, codes: np.ndarray, number: int) -> float:
    """Return the share of sign flips of whole clusters that give a sum as large as the one seen.

    Under the null hypothesis a cluster's part of the difference is as likely to be positive as negative.
    """
    parts = difference.influence.mean(0) + difference.seeds.mean() * difference.share  # (n,), sums to the difference
    sums = np.bincount(codes, weights=parts, minlength=number)  # (C,)
    seen = abs(sums.sum()) - _ROUNDING
    sums = np.sort(np.abs(sums))  # the same p whatever the order of the items, and for either arm as the baseline
    if number <= _EXACT:
        every = 1.0 - 2.0 * (np.arange(2**number)[:, None] >> np.arange(number) & 1)  # (2^C, C)
        return float((np.abs(every @ sums) >= seen).mean())
    reached = sum(np.count_nonzero(np.abs(signs @ sums) >= seen) for signs in _random_signs(number))
    return float((reached + 1) / (_FLIPS + 1))


def _random_signs(number: int) -> Iterator[Floats]:
    """Yield blocks ``[rows, number]`` of random signs, :data:`_FLIPS` rows in all, the same ones on every call."""
    draw = np.random.default_rng(0)
    width = -(-number // 8)
    rows = max(1, _BLOCK // number)
    for first in range(0, _FLIPS, rows):
        count = min(rows, _FLIPS - first)
        packed = np.frombuffer(draw.bytes(count * width), dtype=np.uint8).reshape(count, width)
        yield 1.0 - 2.0 * np.unpackbits(packed, axis=1, count=number).astype(np.float64)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return Holm's step-down correction of the p values that are there (Holm 1979, Scand. J. Statist. 6(2)).

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[i] = largest
    return corrected
