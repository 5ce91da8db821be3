"""The distribution of a difference between two arms, in units of its standard error over items and seeds."""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy import optimize, special

_LARGEST_SEEDS, _FARTHEST = 100, 30.0
"""Largest number of seeds that is named as sufficient, and normal quantile of the smallest p."""


class Reference(NamedTuple):
    """Student's t, or what lies between two of them: the squares of their quantiles, weighted by shares of the variance.

    With the variance of items and that of seeds estimated from few of each, the difference has no exact distribution. With these
    quantiles a true null hypothesis is rejected at most at the nominal level, at every level and ratio of the variances, and so at the
    small levels after a correction for many tests (weighted quantiles, Cochran and Cox's, keep the level near 5 % only).

    Source: Banerjee 1960, Approximate confidence interval for linear functions of means of k populations when the population
    variances are not equal, Sankhya 22.
    """

    parts: tuple[tuple[float, float], ...]
    """Shares of the variance, and the degrees of freedom of each."""
    test: str = "t, Banerjee"

    def quantile(self, probability: float) -> float:
        """Return a quantile.

        >>> Reference(((0.5, 1e9), (0.5, 2.0))).quantile(0.975)  # sqrt((1.96^2 + 4.30^2) / 2)
        3.3432...
        """
        parts = (
            math.sqrt(share) * float(special.stdtrit(freedom, probability)) for share, freedom in self.parts if share
        )
        return math.copysign(math.hypot(*parts), probability - 0.5)

    def tail(self, x: float) -> float:
        """Return the probability of a value above ``x``."""
        if x < 0:
            return 1 - self.tail(-x)
        if len(self.parts) == 1:
            return float(special.stdtr(self.parts[0][1], -x))

        def missing(z: float) -> float:
            return -self.quantile(float(special.ndtr(-z))) - x

        return 0.0 if missing(_FARTHEST) < 0 else float(special.ndtr(-optimize.brentq(missing, 0.0, _FARTHEST)))


def student(freedom: float, test: str) -> Reference:
    """Return Student's t."""
    return Reference(((1.0, freedom),), test)


def over_seeds(items: float, seeds: float, count: int, clusters: int) -> Reference:
    """Return the reference of a mean over ``count`` seeds, with the variances over items and seeds that its own is the sum of.

    Two seeds have one degree of freedom, whatever the items': two differences of few values can be equal by chance.
    """
    if count == 2:
        return student(1.0, "t, one degree of freedom")
    total = items + seeds
    return Reference(((items / total, clusters - 1.0), (seeds / total, count - 1.0)))


def seeds_needed(diff: float, items: float, spread: float, clusters: int, level: float, power: float) -> int | None:
    """Return the number of seeds with which a difference of this size would be significant with this power.

    ``spread`` is the variance of the difference between seeds; that over ``items`` is taken as it is. None: more than 100, or no
    number, because the items' variance alone is too large.
    """
    for count in range(2, _LARGEST_SEEDS + 1):
        found = over_seeds(items, spread / count, count, clusters)
        errors = found.quantile(1 - level / 2) + found.quantile(power)
        if abs(diff) >= errors * math.sqrt(items + spread / count):
            return count
    return None
