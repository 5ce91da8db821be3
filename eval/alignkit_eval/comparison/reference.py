"""The distribution of a difference between two arms, in units of its standard error over items and seeds."""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy import optimize, special

_MOST_FREEDOM = 1.2
"""Upper bound on Satterthwaite's degrees of freedom with two seeds."""

_LARGEST_SEEDS, _FARTHEST = 100, 30.0
"""Largest number of seeds that is named as sufficient, and normal quantile of the smallest p."""


class Reference(NamedTuple):
    """Student's t, or what lies between two of them: their quantiles, weighted by shares of the variance.

    With the variance of items and that of seeds estimated from few of each, the difference has no exact distribution. A true null
    is rejected at most at the nominal level with weighted quantiles, but for rounding, with three or more seeds.

    Source: Cochran and Cox 1950, Experimental Designs, section 4.14.
    """

    parts: tuple[tuple[float, float], ...]
    """Shares of the variance, and the degrees of freedom of each."""
    test: str = "t, Cochran-Cox"

    def quantile(self, probability: float) -> float:
        """Return a quantile.

        >>> Reference(((0.5, 1e9), (0.5, 2.0))).quantile(0.975)  # (1.96 + 4.30) / 2
        3.1313...
        """
        return sum(share * float(special.stdtrit(freedom, probability)) for share, freedom in self.parts if share)

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

    Two seeds leave one degree of freedom, with which weighted quantiles reject too often after a correction for several tests.
    """
    total = items + seeds
    if count > 2:
        return Reference(((items / total, clusters - 1.0), (seeds / total, count - 1.0)))
    freedom = total**2 / (items**2 / (clusters - 1) + seeds**2)
    return student(min(freedom, _MOST_FREEDOM), "t, Satterthwaite")


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
