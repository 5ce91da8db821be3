"""Which rows an optimizer step takes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from alignkit.types import Reuse


def steps_per_epoch(n: int, per_step: int) -> int:
    """Return how many optimizer steps pass over ``n`` rows once; the last one may be short."""
    return -(-n // per_step)


def epoch_steps(n: int, per_step: int, reuse: Reuse, *, whole: bool) -> int:
    """Return how many optimizer steps an epoch has where batches are reused; ``whole``: no rollout is cut short."""
    if not whole and reuse.steps == 1:
        return steps_per_epoch(n, per_step)
    return max(n // (per_step * reuse.minibatches), 1) * reuse.steps


def step_rows(n: int, per_step: int, seed: int, step: int) -> list[int]:
    """Return the rows of optimizer step ``step`` (from 0), a function of nothing but the arguments.

    Every epoch is its own permutation of all ``n`` rows, cut into windows of ``per_step``; the last, short window is kept.
    So a resumed run continues with exactly the rows it would have had.

    >>> sorted(step_rows(5, 2, 0, 0) + step_rows(5, 2, 0, 1) + step_rows(5, 2, 0, 2))
    [0, 1, 2, 3, 4]
    >>> len(step_rows(5, 2, 0, 2))
    1
    """
    if n < 1 or per_step < 1 or step < 0:
        raise ValueError(f"needs n >= 1, per_step >= 1 and step >= 0, got {n}, {per_step} and {step}")
    epoch, window = divmod(step, steps_per_epoch(n, per_step))
    order = _permutation(n, seed, epoch)
    return [int(i) for i in order[window * per_step : (window + 1) * per_step]]


def rollout_rows(n: int, per_rollout: int, seed: int, number: int) -> list[int]:
    """Return the rows of rollout ``number`` (from 0): every pass over the data in its own order, every rollout full.

    >>> len(rollout_rows(5, 2, 0, 2)), len(rollout_rows(3, 8, 0, 0))
    (2, 8)
    """
    if n < 1 or per_rollout < 1 or number < 0:
        raise ValueError(f"needs n >= 1, per_rollout >= 1 and number >= 0, got {n}, {per_rollout} and {number}")
    places = range(number * per_rollout, (number + 1) * per_rollout)
    return [int(_permutation(n, seed, place // n)[place % n]) for place in places]


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(n)
