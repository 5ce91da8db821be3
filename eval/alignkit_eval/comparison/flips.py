"""Sign flips of clusters: an exact test of a paired difference, its interval, and the difference it can detect.

Under the null hypothesis that the difference is ``delta``, each cluster's contribution ``d_c - delta w_c`` is symmetric around
zero, with the cluster's share ``w_c`` of the items. p is the share of the 2^C sign flips with a sum at least as large as the
observed one. The interval holds every ``delta`` that this test does not reject at 5 %, so that it leaves out 0 exactly where p
is below 0.05: a sign flip reaches the observed sum where ``delta`` lies below the mean of the flipped clusters, or of the
others (above, for the upper end), so that the ends are quantiles of these means (Hartigan 1969, J. Am. Statist. Assoc. 64).

Equivalence within a margin is decided by the same flips: differences of minus and plus the margin must both be rejected, so that
it is shown exactly where the interval lies inside the margin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from alignkit_eval.statistics import LEVEL, Floats

EXACT = 12
"""Up to this many clusters, all 2^C sign flips are evaluated."""

_FLIPS, _MOST_FLIPS = 20_000, 1_000_000
"""Random sign flips where there are more clusters; and the most, for a small p that is corrected for many tests."""

_RESOLUTION = 10
"""A small p that is corrected for many tests is measured by flips of which this many reach the observed sum at the limit."""

_BLOCK = 1_000_000
"""Random bytes in memory at once, which bounds memory for any number of clusters."""

_ROUNDING = 1e-12
"""Differences below this are rounding errors."""

_NO_SHARE = 1e-9
"""Share of the items below which a group of clusters has none."""

_EXPERIMENTS = 300
"""Simulated experiments behind a detectable difference of few clusters."""


class Flips(NamedTuple):
    """p of the test and the ends of its 95 % interval (None: no end, because too few clusters could reject nothing)."""

    p: float
    low: float | None
    high: float | None
    p_equivalent: float | None = None
    """The larger p of the tests of minus and plus the margin; 1 for an observed difference outside of it, None without a margin."""


def sign_flips(parts: Floats, weights: Floats, tests: int = 1, margin: float | None = None) -> Flips:
    """Return the test and interval of ``sum(parts)``, from the clusters' contributions and shares, both ``[C]``.

    ``tests``: number of tests that p is corrected for. With many, a p that could be significant is measured by more flips, until
    it is or cannot be (Besag and Clifford 1991, Biometrika 78(2)); the interval is that of the first ones. ``margin``: difference
    that counts as none.
    """
    side, parts, weights = _canonical(parts, weights)
    total, mass = parts.sum(), weights.sum()
    both = np.stack([parts, weights], axis=1)  # (C, 2)
    lows, highs, reached, beyond, count = [], [], 0, np.zeros(2), 0
    drawn = len(parts) > EXACT
    for sums in _random_sums(both) if drawn else [every_sign(len(parts)) @ both]:
        found, share = sums.T
        reached += int(np.count_nonzero(np.abs(found) >= abs(total) - _ROUNDING))
        if count < _FLIPS or margin is not None:
            low, high = _subset_means(total, mass, found, share)
            if margin is not None:
                reach = margin - _ROUNDING  # means of few items may be the margin itself
                beyond += [np.count_nonzero(low <= -reach), np.count_nonzero(high >= reach)]
            if count < _FLIPS:
                lows.append(low)
                highs.append(-high)
        count += len(sums)
        few = reached <= _RESOLUTION or (margin is not None and beyond.max() <= _RESOLUTION)
        if count >= _FLIPS and not (count < _flips_for(tests) and few):
            break
    p = (reached + drawn) / (count + drawn)
    inside = margin is not None and abs(total) < margin * mass - _ROUNDING
    equivalent = None if margin is None else float(beyond.max() + drawn) / (count + drawn) if inside else 1.0
    lower, upper = _end(lows, 1 - LEVEL, drawn=drawn), -_end(highs, 1 - LEVEL, drawn=drawn)
    if p >= 1 - LEVEL:  # also after rounding
        lower, upper = min(lower, 0.0), max(upper, 0.0)
    ends = (lower, upper) if side > 0 else (-upper, -lower)
    lowest, highest = (end if math.isfinite(end) else None for end in ends)
    return Flips(float(p), lowest, highest, equivalent)


def _flips_for(tests: int) -> int:
    return min(_MOST_FLIPS, math.ceil(_RESOLUTION * tests / (1 - LEVEL)))


def _canonical(parts: Floats, weights: Floats) -> tuple[float, Floats, Floats]:
    """Return a sign, and the clusters in an order that depends neither on the items' order nor on which arm is the baseline."""
    scale = max(float(np.abs(parts).max()), _ROUNDING)
    rounded = np.round(parts / scale, 9) + 0.0
    ordered = {side: np.lexsort((weights, side * rounded)) for side in (1.0, -1.0)}
    keys = {side: (side * rounded[order]).tolist() for side, order in ordered.items()}
    side = 1.0 if keys[1.0] >= keys[-1.0] else -1.0
    return side, side * parts[ordered[side]], weights[ordered[side]]


def _subset_means(total: float, mass: float, found: Floats, share: Floats) -> tuple[Floats, Floats]:
    """Return the smaller and larger mean of the flipped and the other clusters of each sign flip; infinite without both."""
    # Without a flip, rounding errors are left of the share of the flipped clusters.
    alone = np.minimum(mass - share, mass + share) <= _NO_SHARE * mass
    with np.errstate(divide="ignore", invalid="ignore"):
        flipped, others = (total - found) / (mass - share), (total + found) / (mass + share)
    return (
        np.where(alone, -np.inf, np.minimum(flipped, others)),
        np.where(alone, np.inf, np.maximum(flipped, others)),
    )


def _end(blocks: Sequence[Floats], level: float, *, drawn: bool) -> float:
    """Return the smallest difference that is not rejected at ``level``, from the lower means of all sign flips."""
    values = np.concatenate(blocks)
    rank = math.ceil(level * (len(values) + 1)) - 1 if drawn else math.floor(level * len(values)) + 1
    return float(np.partition(values, rank - 1)[rank - 1]) if rank >= 1 else -math.inf


def every_sign(number: int) -> Floats:
    """Return all sign flips of a number of clusters, ``[2^C, C]``."""
    return 1.0 - 2.0 * (np.arange(2**number)[:, None] >> np.arange(number) & 1).astype(np.float64)


def _random_sums(parts: Floats) -> Iterator[Floats]:
    """Yield blocks of the sums of ``parts [C, 2]`` after random sign flips, the same on every call; a block ends at :data:`_FLIPS`.

    A random byte flips eight clusters: the sums of its 256 cases are looked up, both columns at once as a complex number.
    """
    draw = np.random.default_rng(0)
    width = -(-len(parts) // 8)
    padded = np.zeros((8 * width, 2))
    padded[: len(parts)] = parts
    flips = 1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)  # (256, 8)
    table = np.einsum("fc,wcx->wfx", flips, padded.reshape(width, 8, 2))
    table = np.ascontiguousarray(table).view(np.complex128)[:, :, 0]  # (W, 256)
    rows = max(1, _BLOCK // width)
    done = 0
    while done < _MOST_FLIPS:
        count = min(rows, (_FLIPS if done < _FLIPS else _MOST_FLIPS) - done)
        done += count
        drawn = np.frombuffer(draw.bytes(count * width), dtype=np.uint8).reshape(count, width)
        sums = np.zeros(count, np.complex128)
        for sums_of, cases in zip(table, drawn.T, strict=True):
            sums += sums_of.take(cases)
        yield sums.view(np.float64).reshape(count, 2)


def smallest_p(clusters: int) -> float:
    """Return the smallest p that the test can have."""
    return max(2.0 ** (1 - min(clusters, 100)), 1 / (_MOST_FLIPS + 1) if clusters > EXACT else 0.0)


@lru_cache(maxsize=256)
def detectable_errors(clusters: int, level: float, power: float) -> float:
    """Return the difference, in standard errors, that few clusters detect with ``power`` at ``level``; infinite if none.

    Contributions of clusters are normal in the simulated experiments. A shift by ``delta`` moves the interval's lower end by
    ``delta``: the difference is detected where it is larger than minus that end.
    """
    signs = every_sign(clusters)
    parts = np.random.default_rng(0).normal(size=(_EXPERIMENTS, clusters)) / clusters
    share = signs.mean(1)
    ends = [_end([_subset_means(part.sum(), 1.0, signs @ part, share)[0]], level, drawn=False) for part in parts]
    needed = float(np.quantile(-np.array(ends), power)) if np.isfinite(ends).all() else math.inf
    return needed * math.sqrt(clusters)
