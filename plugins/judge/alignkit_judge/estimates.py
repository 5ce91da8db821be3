r"""Win rates of an imperfect judge: corrected for its errors, for the length of answers, and by human ratings.

Every estimate is a function of means, so that each observation has an influence on it; influences are summed within clusters,
those of calibration pairs and compared items with the same cluster together, because they may share prompts and answers:

    se^2 = C / (C - 1) sum_c (sum_{i in c} phi_i)^2

A verdict ``v`` in [0, 1] is the judge's credit of one answer against another, the mean over both orders of showing them; below,
``V = 2 v - 1`` and ``S = 2 z - 1``, where z is 1 where the answer is truly better, 0 where it is worse.

Shapes: ``n`` compared items, ``m`` calibration pairs.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from alignkit import Estimate
from alignkit_eval.statistics import LEVEL, Floats, cluster_codes, clustered_variance, wilson
from numpy.typing import ArrayLike
from scipy import stats

_PRIOR = 0.5
"""Penalty on the coefficients of the logistic regression: finite also where one answer always wins."""
_SPREAD = 1e-9
"""Spread of a length difference below which it explains nothing."""


class Verdicts(NamedTuple):
    """Credits of answers against others, how much longer they are (on any scale), and their clusters, ``[n]`` each."""

    credits: Floats
    longer: Floats
    clusters: Sequence[Hashable]


class UncorrectableError(ValueError):
    """The calibration does not show that the judge is better than chance: the message says where."""


def bounded(lengths: ArrayLike, scale: float) -> Floats:
    """Return length differences as ``tanh(difference / scale)``, 0 where all lengths are equal (scale 0)."""
    found = np.asarray(lengths, dtype=np.float64)
    return np.tanh(found / scale) if scale > 0 else np.zeros_like(found)


def corrected_win_rate(compared: Verdicts, calibration: Verdicts) -> Estimate:
    r"""Return the true win rate, from the judge's verdicts and its verdicts on pairs with known preference.

    The judge's mean verdict is modelled as linear in the truth and its bias towards longer answers, with d how much longer the
    answer is (:func:`bounded`):

        E[V | S, d] = (a + c d^2) S + b d

    Swapping the two answers changes the sign of V, S and d, so this is the general form up to second order. ``a``, ``b`` and
    ``c`` are fitted by least squares on the calibration pairs, whose better answer is known (S = 1). The truth of every
    compared item is then estimated without bias,

        S_i = (V_i - b d_i) / (a + c d_i^2),        win rate = (1 + mean_i S_i) / 2

    Without lengths (b = c = 0) this is Rogan and Gladen's (1978) estimator ``(p + q0 - 1) / (q0 + q1 - 1)`` with
    sensitivity q1 = specificity q0 = (1 + a) / 2, the judge's accuracy; the interval contains the error of the calibration
    (Lee et al. 2025, arXiv:2511.21140) and lies inside [0, 1].

    It assumes that the judge errs on the compared items as on calibration pairs with the same truth and length difference. A
    preference for the style of one of the compared models is not in the calibration, and is not corrected.

    Raises:
        UncorrectableError: the calibration does not show that the judge is better than chance.
    """
    if len(set(calibration.clusters)) < 2:
        raise UncorrectableError("there are too few pairs with known preference to measure the judge's error on")
    d = calibration.longer
    used = [power for power in (1, 2) if np.ptp(d**power) > _SPREAD and len(d) > power + 2]
    columns = [np.ones_like(d), *(d**power for power in used)]
    names = [0, 1, 2][: len(columns)]
    design = np.stack(columns, axis=1)  # (m, k)
    inverse = np.linalg.pinv(design.T @ design)
    outcome = 2 * calibration.credits - 1
    fitted = inverse @ design.T @ outcome  # (k,)
    influence = (inverse @ design.T) * (outcome - design @ fitted)  # (k, m)
    a, b, c = (*fitted, 0.0, 0.0)[:3]
    _require_better_than_chance(compared, calibration, fitted, influence)
    own, at = 2 * compared.credits - 1, compared.longer
    slope = a + c * at**2
    truth = (own - b * at) / slope
    mean, n = float(truth.mean()), len(truth)
    gradient = np.stack([-truth / slope, -at / slope, -truth * at**2 / slope]).mean(1)[names]  # (k,)
    phi = np.concatenate([(truth - mean) / n, gradient @ influence]) / 2
    codes, count = cluster_codes([*compared.clusters, *calibration.clusters])
    freedom = min(len(set(compared.clusters)), len(set(calibration.clusters))) - 1
    return _inside((1 + mean) / 2, _error(phi, codes, count), freedom)


def _require_better_than_chance(compared: Verdicts, calibration: Verdicts, fitted: Floats, influence: Floats) -> None:
    """Raise where the judge's slope in the truth is not shown to be positive for every length difference compared."""
    codes, count = cluster_codes(calibration.clusters)
    ends = {0.0, float((compared.longer**2).max())} if len(fitted) > 2 else {0.0}
    for end in ends:
        weights = np.array([1.0, 0.0, end])[: len(fitted)]
        low = _interval(float(weights @ fitted), _error(weights @ influence, codes, count), count - 1)[0]
        if low is None or low <= 0:
            where = "" if len(ends) == 1 or end == 0.0 else " where the answers' lengths differ as much as here"
            raise UncorrectableError(f"on the calibration pairs the judge is not shown to be better than chance{where}")


def rated_win_rate(verdicts: Verdicts, ratings: Sequence[float | None], same: ArrayLike | None = None) -> Estimate:
    r"""Return the win rate by human ratings of some items, with the judge's verdicts on all of them as an aid.

    Prediction-powered inference with the weight that minimises the variance: with n rated items (ratings Y, verdicts f) and N
    further ones (verdicts f'),

        theta = mean(Y) + lambda (mean(f') - mean(f)),      lambda = cov(Y, f) / ((1 + n / N) var(f))

    It assumes nothing about the judge, on which only the width depends: with a useless judge, lambda is about 0 and theta
    the mean of the ratings. Rated items must be a random part of all that differ. Items where both answers are the ``same``
    (True) are ties, which nobody rates.

    Source: Angelopoulos et al. 2023, arXiv:2301.09633; the weight: arXiv:2311.01453, section 6.
    """
    ties = np.zeros(len(ratings), bool) if same is None else np.asarray(same, bool)
    rated = np.array([rating is not None for rating in ratings]) & ~ties
    rest = ~rated & ~ties
    y = np.array([rating for rating, use in zip(ratings, rated, strict=True) if use], dtype=np.float64)
    f, further = verdicts.credits[rated], verdicts.credits[rest]
    n, more = len(y), len(further)
    spread = float(np.var(verdicts.credits[~ties]))
    weight = float(np.cov(y, f, bias=True)[0, 1]) / ((1 + n / more) * spread) if more and spread > 0 and n > 1 else 0.0
    differing = float(y.mean()) + (weight * float(further.mean() - f.mean()) if more else 0.0)
    share = 1 - float(ties.mean())
    value = share * differing + (1 - share) / 2
    phi = np.where(ties, (0.5 - value) / len(ties), (differing - value) / len(ties))
    phi[rated] += share * ((y - y.mean()) - weight * (f - f.mean())) / n
    if more:
        phi[rest] += share * weight * (further - further.mean()) / more
    codes, count = cluster_codes(verdicts.clusters)
    clusters = {cluster for cluster, use in zip(verdicts.clusters, rated, strict=True) if use}
    return _inside(value, _error(phi, codes, count), len(clusters) - 1)


def length_controlled(verdicts: Verdicts) -> Estimate:
    r"""Return the win rate that the judge would give if both answers were equally long.

    A logistic regression of the credits on how much longer the answer is (:func:`bounded` by the standard deviation of the
    differences),

        logit P(win) = theta + phi tanh(difference / sd),       win rate = 1 / (1 + exp(-theta))

    with the penalty ``(theta^2 + phi^2) / 4``. As in AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475), without its terms for
    models and the difficulty of prompts, which take many models to fit. The interval is the clustered sandwich's on theta.
    """
    y, d = verdicts.credits, verdicts.longer
    design = np.stack([np.ones_like(d), d], axis=1)  # (n, 2)
    beta = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-design @ beta))
        slope = design.T @ (y - p) - _PRIOR * beta
        hessian = (design.T * (p * (1 - p))) @ design + _PRIOR * np.eye(2)
        step = np.linalg.solve(hessian, slope)
        beta += step
        if np.abs(step).max() < 1e-12:
            break
    phi = np.linalg.solve(hessian, (design * (y - p)[:, None]).T)[0]  # (n,)
    codes, count = cluster_codes(verdicts.clusters)
    ends = _interval(float(beta[0]), _error(phi, codes, count), count - 1)
    value, low, high = (None if x is None else float(1 / (1 + np.exp(-x))) for x in (beta[0], *ends))
    assert value is not None
    return Estimate(value, low, high)


def _error(influence: Floats, codes: Any, count: int) -> float:
    """Return the clustered standard error, not a number for a single cluster."""
    return math.sqrt(clustered_variance(influence, codes, count)) if count > 1 else math.nan


def _interval(value: float, error: float, freedom: int) -> tuple[float | None, float | None]:
    """Return the t interval of a value, None where its error is not known."""
    if freedom < 1 or math.isnan(error):
        return None, None
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    return value - half, value + half


def _inside(value: float, error: float, freedom: int) -> Estimate:
    """Return a proportion with its t interval, both cut to [0, 1]; Wilson's interval where the t interval has no width."""
    low, high = _interval(value, error, freedom)
    cut = min(max(value, 0.0), 1.0)
    if low is None or high is None:
        return Estimate(cut)
    if high - low < _SPREAD:
        return Estimate(cut, *wilson(cut, freedom + 1))
    return Estimate(cut, min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0))
