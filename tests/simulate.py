"""Simulated experiments with a known truth: how often does the comparison find a difference?"""

from __future__ import annotations

import numpy as np
from alignkit_eval.paired import Difference, effect, judge, minus


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

    The arms answer differently by cluster (``cluster_sd``, a method x cluster effect) and by seed (``seed_sd``); both
    effects are zero on average.
    """
    ids = np.repeat(np.arange(clusters), per_cluster)
    difficulty = draw.uniform(0.3, 0.7, size=len(ids))
    effects = draw.normal(0, cluster_sd, size=clusters)[ids] + draw.normal(0, seed_sd, size=seeds)[:, None]
    base = draw.random((seeds, len(ids))) < difficulty
    arm = draw.random((seeds, len(ids))) < np.clip(difficulty + shift + effects, 0, 1)
    return judge(minus(effect(arm.astype(float)), effect(base.astype(float))), [str(i) for i in ids])


def rejected(trials: int, seed: int = 0, **about: float) -> float:
    """Return the share of experiments with p below 5 %: the type I error where ``shift`` is 0, else the power."""
    draw = np.random.default_rng(seed)
    found = [experiment(draw, **about).p for _ in range(trials)]  # type: ignore[arg-type]
    return float(np.mean([p is not None and p < 0.05 for p in found]))


def covered(trials: int, shift: float, seed: int = 0, **about: float) -> float:
    """Return the share of experiments whose 95 % interval holds the true difference."""
    draw = np.random.default_rng(seed)
    found = [experiment(draw, shift=shift, **about) for _ in range(trials)]  # type: ignore[arg-type]
    return float(np.mean([d.low is not None and d.high is not None and d.low <= shift <= d.high for d in found]))


NULLS: dict[str, dict[str, float]] = {
    f"{seeds} seeds, cluster sd {cluster_sd}, seed sd {seed_sd}": {
        "seeds": seeds,
        "cluster_sd": cluster_sd,
        "seed_sd": seed_sd,
    }
    for seeds, seed_sds in ((1, (0.0,)), (2, (0.0, 0.03)), (3, (0.0, 0.03)), (5, (0.0, 0.03)))
    for seed_sd in seed_sds
    for cluster_sd in (0.0, 0.15)
}
"""Settings in which nothing is different: with and without cluster effects and seed effects."""
