"""Simulated experiments of every kind of metric, with a known truth: coverage, type I error and error of equivalence tests.

An experiment draws items, some of which share a cluster, and two arms whose models are trained with some seeds. ``models`` asks
about these trained models, ``method`` about the arms whatever the seed; both have the same true difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from alignkit import Estimate
from alignkit_eval.comparison.paired import Answer, Difference, effect, judge, minus
from alignkit_eval.statistics import clustered_mean, clustered_proportion, clustered_ratio
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

SIZES = (20, 50, 200, 1000)
CLUSTERS = {20: 2, 50: 2, 200: 4, 1000: 5}
"""Items -> items of a cluster, where there are clusters."""

SEEDS = 4


class Kind(NamedTuple):
    """A kind of metric: how the values of items follow from normal latent numbers ``z``, with its estimate and truth.

    ``values`` returns numerators and denominators. Latent numbers have variance 1; a ``shift`` moves their mean.
    """

    values: Callable[[Floats, Floats], tuple[Floats, Floats | None]]
    estimate: Callable[[Floats, Floats | None, list[str]], Estimate]
    truth: Callable[[Floats], float]
    """Mean over many latent numbers."""
    step: float = 0.0


def _credit(z: Floats, size: Floats) -> tuple[Floats, None]:
    return (z > 0).astype(float), None


def _share(z: Floats, size: Floats) -> tuple[Floats, None]:
    return stats.norm.cdf(z), None


def _mean(z: Floats, size: Floats) -> tuple[Floats, None]:
    return z, None


def _ratio(z: Floats, size: Floats) -> tuple[Floats, Floats]:
    return size * (3 + 0.5 * z), size


KINDS = {
    "proportion": Kind(_credit, lambda a, b, c: clustered_proportion(a, c), lambda z: float((z > 0).mean()), 1.0),
    "bounded score": Kind(
        _share, lambda a, b, c: clustered_proportion(a, c), lambda z: float(stats.norm.cdf(z).mean())
    ),
    "unbounded mean": Kind(_mean, lambda a, b, c: clustered_mean(a, c), lambda z: float(z.mean())),
    "ratio of sums": Kind(
        _ratio,
        lambda a, b, c: clustered_ratio(a, b, c),  # type: ignore[arg-type]
        lambda z: float((3 + 0.5 * z).mean()),
    ),
}


class Shape(NamedTuple):
    """The size of an experiment."""

    items: int
    clustered: bool
    seeds: int = 1
    seed_sd: float = 0.0

    @property
    def clusters(self) -> NDArray[np.intp]:
        size = CLUSTERS[self.items] if self.clustered else 1
        return np.arange(self.items) // size


def latent(draw: np.random.Generator, shape: Shape, level: float) -> Floats:
    """Return latent numbers ``[n]`` of variance 1; half of it is the cluster's, where there are clusters."""
    own = draw.normal(size=shape.items)
    if not shape.clustered:
        return level + own
    shared = draw.normal(size=shape.clusters.max() + 1)[shape.clusters]
    return level + math.sqrt(0.5) * (own + shared)


def sizes(draw: np.random.Generator, shape: Shape) -> Floats:
    return draw.integers(5, 40, size=shape.items).astype(float)


def estimated(kind: Kind, shape: Shape, draw: np.random.Generator) -> bool:
    """Return whether the interval of one arm covers the truth; proportions are drawn from .1 to .9."""
    level = float(stats.norm.ppf(draw.uniform(0.1, 0.9)))
    values, denominators = kind.values(latent(draw, shape, level), sizes(draw, shape))
    found = kind.estimate(values, denominators, [str(c) for c in shape.clusters])
    truth = kind.truth(level + NORMAL)
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


NORMAL: Floats = stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
"""Latent numbers of a large population."""


class Trial(NamedTuple):
    """A comparison of two arms with its true difference."""

    found: Difference
    truth: float

    def answer(self, question: str) -> Answer:
        """Return the answer about ``models`` or about the ``method``."""
        if question == "models" and self.found.models is not None:
            return self.found.models
        f = self.found
        return Answer(f.low, f.high, f.p, f.detectable, f.test, f.p_equivalent, f.reachable)


def compared(kind: Kind, shape: Shape, draw: np.random.Generator, shift: float, *, at_margin: bool = False) -> Trial:
    """Compare two arms whose latent numbers differ by ``shift``; ``at_margin``: the margin is the true difference."""
    level = float(stats.norm.ppf(draw.uniform(0.2, 0.8)))
    item, size = latent(draw, shape, 0.0), sizes(draw, shape)
    arms = []
    for moved in (level, level + shift):
        own = [
            math.sqrt(0.5) * item + math.sqrt(0.5) * latent(draw, shape, 0.0) + moved + draw.normal(0, shape.seed_sd)
            for _ in range(shape.seeds)
        ]
        found = [kind.values(z, size) for z in own]
        denominators = None if found[0][1] is None else [b for _, b in found]
        arms.append(effect([a for a, _ in found], denominators))
    spread = math.sqrt(1 + shape.seed_sd**2) * NORMAL
    truth = kind.truth(level + shift + spread) - kind.truth(level + spread)
    base, arm = arms
    margin = abs(truth) if at_margin else None
    return Trial(judge(minus(arm, base), [str(c) for c in shape.clusters], margin, step=kind.step), truth)


class Rates(NamedTuple):
    """Shares of trials: intervals that cover the truth, true null hypotheses rejected, and equivalence wrongly shown."""

    coverage: float
    type_one: float
    equivalence: float


def rates(kind: str, shape: Shape, question: str, trials: int, seed: int = 0) -> Rates:
    """Return the rates of comparisons of a kind of metric."""
    draw, about = np.random.default_rng(seed), KINDS[kind]
    covered, rejected, equivalent = 0, 0, 0
    for _ in range(trials):
        shifted = compared(about, shape, draw, 0.3, at_margin=True)
        answer = shifted.answer(question)
        covered += (answer.low is None or answer.low <= shifted.truth) and (
            answer.high is None or shifted.truth <= answer.high
        )
        equivalent += answer.p_equivalent is not None and answer.p_equivalent < 0.05
        p = compared(about, shape, draw, 0.0).answer(question).p
        rejected += p is not None and p < 0.05
    return Rates(covered / trials, rejected / trials, equivalent / trials)


def coverage(kind: str, shape: Shape, trials: int, seed: int = 0) -> float:
    """Return the share of one arm's intervals that cover the truth."""
    draw = np.random.default_rng(seed)
    return sum(estimated(KINDS[kind], shape, draw) for _ in range(trials)) / trials
