r"""The difference between two arms on the same items: interval, p, and minimum detectable difference, for two questions.

Every metric is a ratio of sums over items, ``theta = sum(a) / sum(b)`` (``b = 1`` for a mean). Linearised, each item has the
influence ``phi_i = (a_i - theta b_i) / sum(b)``; the influence on the paired difference of two arms is the difference of
their influences. The variance has two sources, the sample of items and the seeds:

    delta   = mean_k delta_k                                     over K pairs of runs, one per seed
    V_items = C / (C - 1) sum_c (sum_{i in c} mean_k phi_ik)^2   clusters c of items (Miller 2024, arXiv:2411.00640)
    V_seeds = s^2(delta_k) / K                                   0 where K = 1

**About these trained models** (the seeds are fixed, the items are a sample): sign flips of whole clusters give p and the interval
that holds what they do not reject (:mod:`alignkit_eval.comparison.flips`). With one seed this is the only question that can be
answered.

**About the method** (the seeds are a sample too), with three or more: squared quantiles of ``t = delta / sqrt(V_items + V_seeds)`` are
those of Student's t with C - 1 and with K - 1 degrees of freedom, weighted by ``V_items`` and ``V_seeds`` (Banerjee,
:mod:`alignkit_eval.comparison.reference`); with two, t has one degree of freedom. A true null hypothesis is then rejected in at most 5 %
of trials at the worst ratio of the variances, and in at most 5 % of comparisons of all pairs of 42 arms after Holm's correction. Weighted
quantiles (Cochran and Cox) would give 5.1 % and, with three seeds, 26 %; Satterthwaite's degrees of freedom, at most 1.2 with two seeds,
5.8 % and 17 %. Item noise that differs between seeds is in both terms, which is conservative.

Two arms are *equivalent* within a margin m if delta <= -m and delta >= m are both rejected by the test that decides whether they
differ: sign flips, or t at the same standard error and quantiles (two one-sided tests, Schuirmann 1987, J.
Pharmacokinet. Biopharm. 15). Each is made at 2.5 %, as each side of the difference test is, so that equivalence is shown exactly
where the 95 % interval lies inside the margin; p is twice the larger one-sided p.

Scores with few values (credits of 0 and 1) can be equal on all items by chance. A difference delta then takes at least a share
``|delta| / step`` of items that change by ``step``, and the variance of their sum: intervals hold Wilson's interval of that share,
and p of equivalence is at least that of its score test at the margin.

Shapes: ``K`` seeds, ``n`` items, ``C`` clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from scipy import special

from alignkit_eval.comparison.flips import EXACT, detectable_errors, sign_flips, smallest_p
from alignkit_eval.comparison.reference import Reference, over_seeds, seeds_needed, student
from alignkit_eval.statistics import (
    LEVEL,
    Effect,
    Floats,
    bounded_estimate,
    cluster_codes,
    cluster_sums,
    clustered_variance,
    quantile,
    wilson,
)
from alignkit_eval.statistics import effect as effect

POWER = 0.8
"""Power at which the minimum detectable difference is given."""

_ROUNDING = 1e-12
"""Standard errors below this are rounding errors."""

MODELS_TEST, DRAWS_TEST = "cluster sign-flip", "t, cluster bootstrap"


class Answer(NamedTuple):
    """What is known of a difference as the answer to one question; None where it is undefined (one cluster)."""

    low: float | None
    high: float | None
    p: float | None
    detectable: float | None
    test: str
    p_equivalent: float | None = None
    """Twice the larger p of the two one-sided tests, below 0.05 where the interval lies inside the margin; None without one."""
    reachable: bool = True
    """Whether any result could be significant after the correction."""


class Difference(NamedTuple):
    """A difference with its 95 % interval and p: about the method with two or more seeds, else about the trained models."""

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
    reachable: bool = True
    models: Answer | None = None
    """The answer about the trained models, where there are two or more seeds."""
    seeds_needed: int | None = None
    """Seeds that would show a difference of this size with 80 % power; None with one seed, or where more items are needed too."""


class Asked(NamedTuple):
    """What is asked of a difference."""

    margin: float | None = None
    """Difference that counts as none."""
    tests: int = 1
    """Number of tests that p is corrected for: the detectable difference is the first one's in Holm's order."""
    step: float = 0.0
    """Change of one item for scores with few values (1 for credits), 0 for others."""
    reach: float = math.inf
    """Largest possible difference, the distance of the metric's bounds."""


def minus(arm: Effect, baseline: Effect) -> Effect:
    """Return the paired difference of two arms, seed by seed and item by item."""
    return Effect(arm.seeds - baseline.seeds, arm.influence - baseline.influence, (arm.share + baseline.share) / 2)


def judge(
    difference: Effect,
    clusters: Sequence[Hashable],
    margin: float | None = None,
    *,
    tests: int = 1,
    step: float = 0.0,
    reach: float = math.inf,
) -> Difference:
    """Return the interval, p and minimum detectable difference of an effect; see :class:`Asked` for the arguments.

    >>> judge(effect([[0.0, 0.0, 0.0]]), ["a", "b", "c"])[:4]  # all ties: no difference
    (0.0, 0.0, 0.0, 1.0)
    >>> judge(effect([[0.5, 0.5]]), ["a", "a"])[:4]  # the spread between clusters is unknown with one cluster
    (0.5, None, None, None)
    """
    count, n = difference.influence.shape
    codes, number = cluster_codes(clusters)
    if len(codes) != n:
        raise ValueError(f"{len(codes)} clusters for {n} items")
    diff, asked = float(difference.seeds.mean()), Asked(margin, tests, step, reach)
    if number == 1:
        return Difference(diff, None, None, None, None, n, number, count, MODELS_TEST)
    items = clustered_variance(difference.influence.mean(0), codes, number)
    parts = difference.influence.mean(0) + diff * difference.share  # (n,), sums to the difference
    sums, weights = cluster_sums(parts, codes, number), cluster_sums(difference.share, codes, number)
    models = _of_models(sums, weights, items, asked)
    return _answered(difference.seeds, items, number, n, models, float(weights @ weights), asked)


def judge_draws(
    seeds: Floats, draws: Floats, n: int, clusters: int, margin: float | None = None, *, tests: int = 1
) -> Difference:
    """Return the same for a statistic that is not a mean, from its differences ``[K]`` and those on bootstrap draws ``[K, B]``.

    The variance over items is that of the draws, which are the same for both arms; t has C - 1 degrees of freedom.
    """
    asked, diff = Asked(margin, tests), float(seeds.mean())
    if clusters == 1 or draws.shape[1] < 2:
        return Difference(diff, None, None, None, None, n, clusters, len(seeds), DRAWS_TEST)
    items = float(draws.mean(0).var(ddof=1))
    models = _by_t(diff, items, student(clusters - 1, DRAWS_TEST), 1 / clusters, asked)
    return _answered(seeds, items, clusters, n, models, 1 / clusters, asked)


def _answered(
    seeds: Floats, items: float, clusters: int, n: int, models: Answer, concentration: float, asked: Asked
) -> Difference:
    """Return the answer about the method where there are several seeds, with that about the trained models."""
    diff, count = float(seeds.mean()), len(seeds)
    spread = float(seeds.var(ddof=1)) if count > 1 else 0.0
    if count == 1 or math.sqrt(items + spread / count) <= _ROUNDING:
        return _difference(diff, models, n, clusters, count)
    reference = over_seeds(items, spread / count, count, clusters)
    method = _by_t(diff, items + spread / count, reference, concentration, asked)
    needed = seeds_needed(diff, items, spread, clusters, (1 - LEVEL) / asked.tests, POWER)
    return _difference(diff, method, n, clusters, count)._replace(models=models, seeds_needed=needed)


def _difference(diff: float, answer: Answer, n: int, clusters: int, seeds: int) -> Difference:
    low, high, p, detectable, test, equivalent, reachable = answer
    return Difference(diff, low, high, p, detectable, n, clusters, seeds, test, equivalent, reachable)


def _of_models(parts: Floats, weights: Floats, items: float, asked: Asked) -> Answer:
    """Return the answer of the sign flips, from the clusters' contributions to the difference."""
    clusters, diff, concentration = len(parts), float(parts.sum()), float(weights @ weights)
    found, error = sign_flips(parts, weights, asked.tests, asked.margin), math.sqrt(items)
    reachable = smallest_p(clusters) * asked.tests < 1 - LEVEL
    detectable = None
    if error > _ROUNDING and reachable:
        detectable = error * _detectable_errors(clusters, (1 - LEVEL) / asked.tests)
    if error <= _ROUNDING and abs(diff) <= _ROUNDING:
        found = found._replace(low=0.0, high=0.0, p_equivalent=None if asked.margin is None else 0.0)
    equivalent = _equivalence(diff, found.p_equivalent, concentration, asked)
    low, high = _widened(diff, found.low, found.high, concentration, asked)
    usable = detectable is not None and math.isfinite(detectable) and detectable <= asked.reach
    return Answer(low, high, found.p, detectable if usable else None, MODELS_TEST, equivalent, reachable)


def _detectable_errors(clusters: int, level: float) -> float:
    """Return the difference that sign flips detect, in standard errors: by t, which they are close to for many clusters."""
    if clusters <= EXACT:
        return detectable_errors(clusters, level, POWER)
    return quantile(1 - level / 2, clusters - 1) + quantile(POWER, clusters - 1)


def _by_t(diff: float, variance: float, reference: Reference, concentration: float, asked: Asked) -> Answer:
    """Return the answer of a t test."""
    error, margin = math.sqrt(variance), asked.margin
    if margin is None:
        equivalent = None
    elif error <= _ROUNDING:
        equivalent = float(abs(diff) >= margin)
    else:
        equivalent = min(1.0, 2 * reference.tail((margin - abs(diff)) / error))
    equivalent = _equivalence(diff, equivalent, concentration, asked)
    if error <= _ROUNDING:
        return Answer(None, None, None, None, reference.test, equivalent)
    half = reference.quantile((1 + LEVEL) / 2) * error
    level = (1 - LEVEL) / asked.tests
    detectable = (reference.quantile(1 - level / 2) + reference.quantile(POWER)) * error
    p = 2 * reference.tail(abs(diff) / error)
    low, high = _widened(diff, diff - half, diff + half, concentration, asked)
    return Answer(low, high, p, detectable if detectable <= asked.reach else None, reference.test, equivalent)


def _equivalence(diff: float, p: float | None, concentration: float, asked: Asked) -> float | None:
    """Return p of equivalence, at least that of the score test of the share of items that change by a step at the margin."""
    margin = asked.margin
    if p is None or margin is None or not asked.step or margin >= asked.step:
        return p
    error = math.sqrt(margin * (asked.step - margin) * concentration)
    return max(p, min(1.0, 2 * float(special.ndtr((abs(diff) - margin) / error))))


def _widened(
    diff: float, low: float | None, high: float | None, concentration: float, asked: Asked
) -> tuple[float | None, float | None]:
    """Return an interval that holds Wilson's of the share of items that change by a step, inside the possible differences."""
    if low is None or high is None:
        return low, high
    if asked.step:
        inner, outer = (asked.step * end for end in wilson(min(1.0, abs(diff) / asked.step), 1 / concentration))
        if diff >= -_ROUNDING:
            low, high = min(low, inner if diff > _ROUNDING else -outer), max(high, outer)
        else:
            low, high = min(low, -outer), max(high, -inner)
    return max(low, -asked.reach) + 0.0, min(high, asked.reach) + 0.0  # no -0.0


def estimate_over_seeds(
    found: Effect, clusters: Sequence[Hashable], bounds: tuple[float | None, float | None]
) -> tuple[float, float | None, float | None]:
    """Return the mean of a metric over seeds with an interval that covers items and, with two or more, seeds.

    A bounded score has a proportion's interval at the effective size, any other one a t interval, cut at a single bound.
    """
    codes, number = cluster_codes(clusters)
    value, count = float(found.seeds.mean()), len(found.seeds)
    if number == 1:
        return value, None, None
    items = clustered_variance(found.influence.mean(0), codes, number)
    spread = float(found.seeds.var(ddof=1)) if count > 1 else 0.0
    reference, total = student(number - 1, ""), items + spread / count
    if count > 1 and total > 0:
        reference = over_seeds(items, spread / count, count, number)
    t, error = reference.quantile((1 + LEVEL) / 2), math.sqrt(total)
    low, high = bounds
    if low is not None and high is not None:
        return bounded_estimate(value, error, t, number, (low, high))
    half = t * error
    ends = value - half, value + half
    return value, ends[0] if low is None else max(low, ends[0]), ends[1] if high is None else min(high, ends[1])


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
