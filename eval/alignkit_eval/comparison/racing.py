r"""Which arms of a race are stopped: every two arms tested at planned shares of training, with one error for all of it.

**Claim.** An arm that is at no rung truly worse than any other arm is stopped with probability at most alpha, whatever
the number of arms and rungs, and however the results of different rungs, arms and metrics depend on one another.

**Method.** ``H_i``: "arm i is at no rung truly worse than another arm" is one hypothesis per arm; stopping the arm rejects
it. The error is spent over the rungs ``t_1 < ... < t_R`` (shares of training) by an error-spending function ``a(t)`` with
``a(1) = alpha`` (Lan and DeMets 1983, Biometrika 70(3)), of Pocock's or of O'Brien and Fleming's type:

    pocock            a(t) = alpha ln(1 + (e - 1) t)
    obrien-fleming    a(t) = 2 - 2 Phi(z_{1 - alpha/2} / sqrt(t))

with ``t = t_r / t_R``, so that the last rung spends the rest: ``alpha_r = a(t_r / t_R) - a(t_{r-1} / t_R)``. Group-sequential
boundaries would be computed from ``alpha_r`` and the joint distribution of the looks. Here every rung tests other models on
the same items: increments are not independent and their distribution is unknown. So ``alpha_r`` is the level of rung r itself,
which the union bound allows for any dependence.

At rung r, of ``k`` arms that have not been stopped out of ``K`` planned, arm i is stopped if it is worse than any other one with
a one-sided ``p_ij <= alpha_r / (k (K - 1))``; then k is one less for the arms that are left, also at later rungs (Holm 1979 over
arms, Bonferroni over opponents). As long as no arm has been stopped wrongly, the T true hypotheses are all among the k, so that
each ``p_ij`` of theirs is compared with at most ``alpha_r / (T (K - 1))``, and there are ``T (K - 1)`` of them: the sum over arms, opponents
and rungs is at most alpha (sequential rejection, Goeman and Solari 2010, Ann. Statist. 38(6)).

Where several metrics decide, an arm is worse if it is worse by all of them: ``p_ij`` is the largest of their p.

**p.** ``delta = mean_k (theta_ik - theta_jk)`` over the paired seeds k of both arms, with the variance over clusters of items of
:mod:`alignkit_eval.comparison.paired`, and over seeds

    s^2     = sum_ik (theta_ik - theta_i. - theta_.k + theta_..)^2 / ((k - 1) (S - 1))    of all arms and S seeds at the rung
    V_seeds = max(2 s^2, s^2(theta_ik - theta_jk)) / S

With two or three seeds, a pair's own variance has one or two degrees of freedom, too few for the small levels above; pooled over
arms there are ``(k - 1) (S - 1)``. ``t = delta / sqrt(V)`` has Satterthwaite's degrees of freedom, but at most these. The claim holds
where seeds vary alike in all arms: with half of 12 arms twice as noisy as the others it still does in simulations (5 times: 4 %),
with one arm 10 times as noisy as 11 others that arm, or another because of it, is stopped wrongly in up to 20 %. A pair that is seen
to vary more than the pooled variance keeps its own. With one seed, p is the larger one of the clustered t test and the sign-flip
permutation test, and the claim is about these trained models, not about other seeds.

Shapes: ``A`` arms, ``S`` seeds, ``n`` items, ``C`` clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from alignkit_eval.comparison.paired import Difference, judge, minus
from alignkit_eval.statistics import LEVEL, Effect, Floats, cluster_codes

SPENDING = ("pocock", "obrien-fleming")

_ROUNDING = 1e-12


class Measured(NamedTuple):
    """A deciding metric of every arm, on the same items and seeds."""

    metric: str
    higher_is_better: bool
    effects: Sequence[Effect]
    """One per arm, each of ``S`` seeds and ``n`` items."""
    clusters: Sequence[Hashable]
    log: bool = False
    """Whether the values are logarithms of the metric."""


@dataclass(frozen=True)
class Shortfall:
    """How much worse an arm is than another one by one metric, arm minus other, with its 95 % interval."""

    metric: str
    diff: float
    low: float | None
    high: float | None
    p: float
    """One-sided, not corrected."""


class Stop(NamedTuple):
    """An arm that is stopped, the arm it is worse than, and why."""

    arm: int
    than: int
    shortfalls: tuple[Shortfall, ...]
    p: float
    """Largest p of the metrics, times the number of arms and opponents it was tested among; at most the rung's level."""


def levels(rungs: Sequence[float], alpha: float, spending: str = "pocock") -> list[float]:
    """Return the error that each rung spends; they sum to ``alpha``.

    >>> [round(level, 4) for level in levels([0.25, 0.5, 0.75], 0.05)]
    [0.0226, 0.0156, 0.0118]
    >>> [round(level, 4) for level in levels([0.25, 0.5, 0.75], 0.05, "obrien-fleming")]
    [0.0007, 0.0157, 0.0336]
    """
    shares = np.asarray(rungs) / rungs[-1]
    if spending == "pocock":
        spent = alpha * np.log1p((math.e - 1) * shares)
    else:
        spent = 2 * stats.norm.sf(stats.norm.isf(alpha / 2) / np.sqrt(shares))
    return [float(level) for level in np.diff(spent, prepend=0.0)]


def stops(measured: Sequence[Measured], level: float, planned: int, active: int) -> list[Stop]:
    """Return the arms to stop at a rung, the clearest first.

    Args:
        measured: the deciding metrics of the arms that were evaluated at this rung.
        level: the error that this rung spends.
        planned: arms with which the race began.
        active: arms that have not been stopped; those without a result at this rung count.
    """
    if any(len(one.effects) < 2 for one in measured):
        return []
    tests = [_Tests(one, level / (active * (planned - 1))) for one in measured]
    ps = np.max([test.p for test in tests], axis=0)  # (A, A): row is worse than column
    found: list[Stop] = []
    left = list(range(len(ps)))
    while len(left) > 1:
        # An arm stopped at this rung stays an opponent of the others: it was trained and evaluated as they were.
        arm = min(left, key=lambda i: float(ps[i].min()))
        than = int(ps[arm].argmin())
        factor = (active - len(found)) * (planned - 1)
        if not ps[arm, than] * factor <= level:
            break
        shortfalls = tuple(test.shortfall(arm, than) for test in tests)
        found.append(Stop(arm, than, shortfalls, float(ps[arm, than] * factor)))
        left.remove(arm)
    return found


def smallest_p(seeds: int, clusters: int) -> float:
    """Return the smallest one-sided p that a pair of arms can reach: with one seed, that of the sign flips.

    >>> smallest_p(1, 5), smallest_p(2, 5)
    (0.03125, 0.0)
    """
    if seeds > 1:
        return 0.0
    largest = judge(Effect(np.ones(1), np.zeros((1, clusters)), np.ones(clusters) / clusters), range(clusters))
    return 1.0 if largest.p is None else largest.p / 2


class _Tests:
    """The one-sided tests of one metric between any two arms."""

    def __init__(self, measured: Measured, candidate: float) -> None:
        self.measured = measured
        sign = 1.0 if measured.higher_is_better else -1.0
        codes, count = cluster_codes(measured.clusters)
        self.theta = np.array([effect.seeds for effect in measured.effects])  # (A, S)
        sums = np.array([np.bincount(codes, e.influence.mean(0), minlength=count) for e in measured.effects])  # (A, C)
        self.diff = self.theta.mean(1)[:, None] - self.theta.mean(1)[None]  # (A, A), row minus column
        self.error, self.freedom = _standard_errors(self.theta, sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(np.abs(self.diff) <= _ROUNDING, 0.0, sign * self.diff / self.error)
        self.p: Floats = np.asarray(stats.t.cdf(t, self.freedom), np.float64)
        if count < 2:  # the spread between clusters is unknown
            self.p[:] = 1.0
        elif self.theta.shape[1] == 1:
            for i, j in np.argwhere(self.p <= candidate * len(self.p)):
                self.p[i, j] = max(float(self.p[i, j]), (self._judged(i, j).p or 0.0) / 2)
        np.fill_diagonal(self.p, 1.0)

    def _judged(self, arm: int, than: int) -> Difference:
        effects = self.measured.effects
        return judge(minus(effects[arm], effects[than]), self.measured.clusters)

    def shortfall(self, arm: int, than: int) -> Shortfall:
        """Return the difference of two arms with its interval, in the metric's unit."""
        diff, error = self.diff[arm, than], self.error[arm, than]
        half = float(stats.t.ppf((1 + LEVEL) / 2, self.freedom[arm, than])) * error
        ends = [float(diff), float(diff - half), float(diff + half)]
        if self.measured.log:
            level = math.exp(self.theta[than].mean())
            ends = [level * math.expm1(min(end, 300.0)) for end in ends]
        value, low, high = ends
        return Shortfall(self.measured.metric, value, low, high, float(self.p[arm, than]))


def _standard_errors(theta: Floats, sums: Floats) -> tuple[Floats, Floats]:
    """Return the standard error of every difference of two arms and its degrees of freedom, ``[A, A]`` each.

    ``theta`` are the values, ``[A, S]``; ``sums`` the clusters' sums of the mean influence, ``[A, C]``.
    """
    (arms, seeds), count = theta.shape, sums.shape[1]
    gram = sums @ sums.T
    items = np.maximum(0.0, np.diag(gram)[:, None] + np.diag(gram)[None] - 2 * gram) * count / max(1, count - 1)
    if seeds == 1:
        return np.sqrt(items), np.full_like(items, max(1, count - 1))
    own = (theta[:, None] - theta[None]).var(2, ddof=1)  # (A, A)
    residual = theta - theta.mean(1, keepdims=True) - theta.mean(0, keepdims=True) + theta.mean()
    freedom = (arms - 1) * (seeds - 1)
    pooled = 2 * float((residual**2).sum()) / freedom
    of_seeds = np.maximum(pooled, own) / seeds
    total = items + of_seeds
    with np.errstate(divide="ignore", invalid="ignore"):
        satterthwaite = total**2 / (items**2 / max(1, count - 1) + of_seeds**2 / freedom)
    return np.sqrt(total), np.minimum(np.nan_to_num(satterthwaite, nan=1.0), freedom)
