r"""The difference between two arms on the same items: interval, p, and minimum detectable difference.

Every metric is a ratio of sums over items, ``theta = sum(a) / sum(b)`` (``b = 1`` for a mean). Linearised, each item has the
influence ``phi_i = (a_i - theta b_i) / sum(b)``; the influence on the paired difference of two arms is the difference of
their influences. The variance has two sources, the sample of items and the seeds:

    delta   = mean_k delta_k                                     over K pairs of runs, one per seed
    V_items = C / (C - 1) sum_c (sum_{i in c} mean_k phi_ik)^2   clusters c of items (Miller 2024, arXiv:2411.00640)
    V_seeds = s^2(delta_k) / K                                   0 where K = 1

With two or more seeds, ``t = delta / sqrt(V_items + V_seeds)`` has Satterthwaite's degrees of freedom,
``(V_items + V_seeds)^2 / (V_items^2 / (C - 1) + V_seeds^2 / (K - 1))``, but at most ``4 (K - 1)``: with few seeds ``V_seeds`` is
often far too small by chance, and t would then have the many degrees of freedom of the items (without this bound, two seeds
that are three times as noisy as the items reject a true null hypothesis in 9 % of trials). Item noise that differs between
seeds is in both terms, so the test is conservative where seeds vary little. Where the seeds' variance is more than about four
times the items', two or three seeds still reject too often.

With one seed, the interval is a clustered t interval and p is that of a permutation test that flips the signs of whole
clusters; both are conditional on that seed. Where all clusters and seeds have exactly the same difference, t is undefined,
and the permutation test is used as well.

Two arms are *equivalent* within a margin m if delta <= -m and delta >= m are both rejected, each by a one-sided t test at the
same standard error and degrees of freedom: p is the larger of the two (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15).

Shapes: ``K`` seeds, ``n`` items, ``C`` clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from alignkit_eval.statistics import LEVEL, Effect, Floats, cluster_codes, clustered_variance
from alignkit_eval.statistics import effect as effect

POWER = 0.8
"""Power at which the minimum detectable difference is given."""

_EXACT = 12
"""Up to this many clusters, all 2^C sign flips are evaluated."""

_FLIPS = 20_000
"""Random sign flips where there are more clusters."""

_FREEDOM_PER_SEED = 4
"""Upper bound on the degrees of freedom per seed after the first."""

_BLOCK = 1_000_000
"""Signs in memory at once, which bounds memory for any number of clusters."""

_ROUNDING = 1e-12
"""Standard errors below this are rounding errors."""

_T_TEST, _FLIP_TEST = "t, Satterthwaite", "cluster sign-flip"


class Difference(NamedTuple):
    """A difference with its 95 % interval and p, None where they are undefined (one cluster)."""

    diff: float
    low: float | None
    high: float | None
    p: float | None
    detectable: float | None
    n: int
    clusters: int
    seeds: int
    test: str
    p_equivalent: float | None = None
    """p of the two one-sided tests; None without a margin."""


def minus(arm: Effect, baseline: Effect) -> Effect:
    """Return the paired difference of two arms, seed by seed and item by item."""
    return Effect(arm.seeds - baseline.seeds, arm.influence - baseline.influence, (arm.share + baseline.share) / 2)


def judge(difference: Effect, clusters: Sequence[Hashable], margin: float | None = None) -> Difference:
    """Return the interval, p and minimum detectable difference of an effect, and p of equivalence within ``margin``.

    >>> judge(effect([[0.0, 0.0, 0.0]]), ["a", "b", "c"])[:4]  # all ties: no difference, with certainty
    (0.0, 0.0, 0.0, 1.0)
    >>> judge(effect([[0.5, 0.5]]), ["a", "a"])[:4]  # the spread between clusters is unknown with one cluster
    (0.5, None, None, None)
    """
    count, n = len(difference.seeds), difference.influence.shape[1]
    codes, number = cluster_codes(clusters)
    if len(codes) != n:
        raise ValueError(f"{len(codes)} clusters for {n} items")
    diff = float(difference.seeds.mean())
    test = _T_TEST if count > 1 else _FLIP_TEST
    if number == 1:
        return Difference(diff, None, None, None, None, n, number, count, test)
    error, freedom = _standard_error(difference, codes, number)
    if error <= _ROUNDING:
        equivalent = None if margin is None else float(abs(diff) >= margin)
        if abs(diff) <= _ROUNDING:
            return Difference(diff, diff, diff, 1.0, None, n, number, count, test, equivalent)
        p = _sign_flip(difference, codes, number)
        return Difference(diff, None, None, p, None, n, number, count, _FLIP_TEST, equivalent)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    detectable = half + float(stats.t.ppf(POWER, freedom)) * error
    p = float(2 * stats.t.sf(abs(diff) / error, freedom)) if count > 1 else _sign_flip(difference, codes, number)
    equivalent = None if margin is None else float(stats.t.sf((margin - abs(diff)) / error, freedom))
    return Difference(diff, diff - half, diff + half, p, detectable, n, number, count, test, equivalent)


def _standard_error(difference: Effect, codes: np.ndarray, number: int) -> tuple[float, float]:
    """Return the standard error over items and seeds, and its degrees of freedom."""
    items = clustered_variance(difference.influence.mean(0), codes, number)
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
    """Return p of the permutation test: the share of cluster sign flips with a sum at least as large as the observed one.

    Under the null hypothesis, each cluster's contribution to the difference is symmetric around zero.
    """
    parts = difference.influence.mean(0) + difference.seeds.mean() * difference.share  # (n,), sums to the difference
    sums = np.bincount(codes, weights=parts, minlength=number)  # (C,)
    observed = abs(sums.sum()) - _ROUNDING
    sums = np.sort(np.abs(sums))  # p must not depend on the order of the items, or on which arm is the baseline
    if number <= _EXACT:
        every = 1.0 - 2.0 * (np.arange(2**number)[:, None] >> np.arange(number) & 1)  # (2^C, C)
        return float((np.abs(every @ sums) >= observed).mean())
    reached = sum(np.count_nonzero(np.abs(signs @ sums) >= observed) for signs in _random_signs(number))
    return float((reached + 1) / (_FLIPS + 1))


def _random_signs(number: int) -> Iterator[Floats]:
    """Yield blocks ``[rows, number]`` of random signs, :data:`_FLIPS` rows in total, the same on every call."""
    draw = np.random.default_rng(0)
    width = -(-number // 8)
    rows = max(1, _BLOCK // number)
    for first in range(0, _FLIPS, rows):
        count = min(rows, _FLIPS - first)
        packed = np.frombuffer(draw.bytes(count * width), dtype=np.uint8).reshape(count, width)
        yield 1.0 - 2.0 * np.unpackbits(packed, axis=1, count=number).astype(np.float64)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return p values after Holm's step-down correction, None unchanged (Holm 1979, Scand. J. Statist. 6(2)).

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
