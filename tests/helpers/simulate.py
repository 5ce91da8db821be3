"""Simulated experiments with a known difference, for error rates and power of the comparison."""

from __future__ import annotations

import math

import numpy as np
from alignkit_eval.comparison.paired import Difference, effect, judge, minus
from alignkit_eval.comparison.reference import over_seeds
from scipy import special, stats


def experiment(
    draw: np.random.Generator,
    *,
    seeds: int,
    clusters: int = 100,
    per_cluster: int = 4,
    shift: float = 0.0,
    cluster_sd: float = 0.0,
    seed_sd: float = 0.0,
) -> Difference:
    """Compare two simulated arms of 0/1 credits whose success rates differ by ``shift``.

    One arm has random cluster effects (standard deviation ``cluster_sd``), and every run of both arms a random seed effect
    (``seed_sd``); both have mean zero.
    """
    ids = np.repeat(np.arange(clusters), per_cluster)
    difficulty = draw.uniform(0.3, 0.7, size=len(ids))
    by_cluster = draw.normal(0, cluster_sd, size=clusters)[ids]
    base, arm = (
        (draw.random((seeds, len(ids))) < np.clip(rates + draw.normal(0, seed_sd, size=(seeds, 1)), 0, 1)).astype(float)
        for rates in (difficulty, difficulty + shift + by_cluster)
    )
    return judge(minus(effect(arm), effect(base)), [str(i) for i in ids])


def rejected(trials: int, seed: int = 0, **about: float) -> float:
    """Return the share of experiments with p below 5 %."""
    draw = np.random.default_rng(seed)
    found = [experiment(draw, **about).p for _ in range(trials)]  # type: ignore[arg-type]
    return float(np.mean([p is not None and p < 0.05 for p in found]))


def type_one_error(trials: int, seed: int = 0, **about: float) -> float:
    """Return the share of experiments that find a difference when there is none."""
    return rejected(trials, seed, **about | {"shift": 0.0})


def family_wise_error(trials: int, *, arms: int, ratio: float, seeds: int, clusters: int = 126, seed: int = 0) -> float:
    """Return the share of comparisons of all pairs of equal arms that find a difference after Holm's correction.

    An arm's result is a normal error of its items plus one of each seed, of ``ratio`` times its standard deviation; the variance
    over items is drawn, and the quantiles are those of the comparison.
    """
    draw, (one, other), found = np.random.default_rng(seed), np.triu_indices(arms, 1), 0
    for _ in range(trials):
        results = draw.normal(0, 1, (arms, 1)) + draw.normal(0, ratio, (arms, seeds))
        pairs = results[one] - results[other]
        items, spread = 2 * draw.chisquare(clusters - 1, len(pairs)) / (clusters - 1), pairs.var(axis=1, ddof=1) / seeds
        t = abs(pairs.mean(axis=1)) / np.sqrt(items + spread)
        least = over_seeds(
            items, spread, seeds, clusters
        )  # of its quantiles at the level of the smallest p, Holm's first
        squares = sum(share * special.stdtrit(freedom, 1 - 0.025 / len(pairs)) ** 2 for share, freedom in least.parts)
        found += bool((t**2 > squares).any())
    return found / trials


def power(trials: int, shift: float, seed: int = 0, **about: float) -> float:
    """Return the share of experiments that find a difference of ``shift``."""
    return rejected(trials, seed, **about | {"shift": shift})


def expected_power(items: int, shift: float) -> float:
    """Return the theoretical power with one seed and ``items`` items in separate clusters, by the normal approximation.

    Success rates are uniform on [.3, .7], so that p (1 - p) is .25 - .04 / 3 on average, and the difference of two arms has
    twice that variance.
    """
    error = math.sqrt(2 * (0.25 - 0.04 / 3) / items)
    return float(stats.norm.sf(stats.norm.ppf(0.975) - shift / error))


def covered(trials: int, shift: float, seed: int = 0, **about: float) -> float:
    """Return the share of experiments whose 95 % interval contains the true difference."""
    draw = np.random.default_rng(seed)
    found = [experiment(draw, shift=shift, **about) for _ in range(trials)]  # type: ignore[arg-type]
    return float(np.mean([d.low is not None and d.high is not None and d.low <= shift <= d.high for d in found]))


NULLS: dict[str, dict[str, float]] = {
    f"{seeds} seeds, cluster sd {cluster_sd}, seed sd {seed_sd}": {
        "seeds": seeds,
        "per_cluster": 8,
        "cluster_sd": cluster_sd,
        "seed_sd": seed_sd,
    }
    for seeds, seed_sds in ((1, (0.0,)), (2, (0.0, 0.03)), (3, (0.0, 0.03)), (5, (0.0, 0.03)))
    for seed_sd in seed_sds
    for cluster_sd in (0.0, 0.15)
}
"""Settings without a true difference, with and without cluster and seed effects.

With 100 clusters of 8 items and a seed sd of .03 in both arms, the variance of seeds is about three times that of items.
"""
