"""The rows of every epoch, optimizer step and rollout.

They are a pure function of the rows, the settings, the seed and the step number, so that a resumed run takes exactly the rows
of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignkit.contract import Reuse

Ints = NDArray[np.int64]
Interleave = Literal["random", "even", "in_turn"]

_MIX, _ARRANGE, _RUNS = 1, 2, 3  # independent random streams


class Curriculum(NamedTuple):
    """Easy rows before hard ones."""

    difficulty: NDArray[np.float64]
    """Difficulty of every row, smaller is easier, ``[rows]``."""
    buckets: int | None = None
    """Number of difficulty levels of about equal size, shuffled within; None sorts strictly."""
    epochs: int | None = None
    """Number of ordered epochs; None: all."""


class Phase(NamedTuple):
    """A part of training with its own amounts."""

    until: float
    """Share of the optimizer steps at which the phase ends."""
    amounts: tuple[int, ...]
    """Rows per epoch of every source."""


@dataclass(frozen=True, eq=False)
class RowOrder:
    """The order of the training rows: by default, a new permutation every epoch.

    Args:
        rows: number of training rows.
        seed: seed of every shuffle.
        shuffle: whether every epoch has a new order; otherwise the order of the data.
        sources: index of every row's source, ``[rows]`` (None: one source).
        amounts: rows per epoch of every source, possibly more than it has (None: each row once).
        interleave: sources shuffled together, spread evenly over the epoch, or one after another.
        curriculum: order by difficulty.
        groups: index of every row's group, ``[rows]``; all rows of a step are from one group.
        steps_per_group: consecutive steps drawn from one group.
        phases: amounts by training progress, instead of ``amounts``.
    """

    rows: int
    seed: int
    shuffle: bool = True
    sources: Ints | None = None
    amounts: tuple[int, ...] | None = None
    interleave: Interleave = "random"
    curriculum: Curriculum | None = None
    groups: Ints | None = None
    steps_per_group: int = 1
    phases: tuple[Phase, ...] = ()

    @property
    def size(self) -> int:
        """Rows per epoch (with phases: the number of training rows)."""
        return self.rows if self.amounts is None or self.phases else sum(self.amounts)

    def per_epoch(self, per_step: int, reuse: Reuse, *, whole: bool) -> int:
        """Return the optimizer steps per epoch, with ``reuse`` of each batch; ``whole``: every rollout is full."""
        if not whole and reuse.steps == 1:
            return len(_windows(self, per_step, 0))
        return max(self.size // (per_step * reuse.minibatches), 1) * reuse.steps

    def epoch(self, number: int) -> Ints:
        return _epoch(self, number)

    def taken(self, per_step: int, epoch: int) -> list[int]:
        """Return the rows of an epoch in the order of its steps."""
        return [int(row) for window in _windows(self, per_step, epoch) for row in window]

    def step(self, per_step: int, step: int, total: int) -> list[int]:
        """Return the rows of optimizer step ``step`` (from 0) of ``total``; the last one of an epoch may be short."""
        order, step = self._phase(step, total)
        epoch = 0
        if order.groups is None:
            epoch, step = divmod(step, len(_windows(order, per_step, 0)))
        while step >= (steps := len(_windows(order, per_step, epoch))):  # with groups, epochs can differ in length
            step -= steps
            epoch += 1
        return [int(i) for i in _windows(order, per_step, epoch)[step]]

    def rollout(self, per_rollout: int, number: int, total: int) -> list[int]:
        """Return the rows of rollout ``number`` (from 0) of ``total``; each is full and may span two epochs."""
        order, number = self._phase(number, total)
        size = order.size
        positions = range(number * per_rollout, (number + 1) * per_rollout)
        return [int(order.epoch(position // size)[position % size]) for position in positions]

    def _phase(self, number: int, total: int) -> tuple[RowOrder, int]:
        """Return the order of the phase a step belongs to, and the step's number in that phase."""
        if not self.phases:
            return self, number
        begins = [0, *(round(phase.until * total) for phase in self.phases[:-1])]
        which = max(i for i, begin in enumerate(begins) if begin <= number)
        return _phase_orders(self)[which], number - begins[which]


@lru_cache(maxsize=4)
def _phase_orders(order: RowOrder) -> tuple[RowOrder, ...]:
    return tuple(
        replace(order, phases=(), amounts=phase.amounts, seed=order.seed + 1_000_003 * number)
        for number, phase in enumerate(order.phases, 1)
    )


@lru_cache(maxsize=4)
def _epoch(order: RowOrder, number: int) -> Ints:
    pool = _pool(order, number)
    ordered = order.curriculum
    if ordered is not None and (ordered.epochs is None or number < ordered.epochs):
        return _by_difficulty(order, pool, ordered, number)
    if order.sources is None or order.interleave == "random":
        if not order.shuffle:
            return pool
        if order.amounts is None:
            return np.random.default_rng([order.seed, number]).permutation(order.rows)
        return pool[np.random.default_rng([order.seed, number, _ARRANGE]).permutation(len(pool))]
    return _interleaved(order, pool, number)


def _pool(order: RowOrder, epoch: int) -> Ints:
    """Return the rows of an epoch, source by source; each source continues where the previous epoch ended."""
    if order.amounts is None or order.sources is None:
        return np.arange(order.rows)
    taken: list[Ints] = []
    for source, amount in enumerate(order.amounts):
        mine = np.flatnonzero(order.sources == source)
        drawn = np.arange(epoch * amount, (epoch + 1) * amount)  # counted from the beginning of training
        for number in range(epoch * amount // max(len(mine), 1), -(-(epoch + 1) * amount // max(len(mine), 1))):
            here = drawn[drawn // len(mine) == number] % len(mine)
            random = np.random.default_rng([order.seed, source, number, _MIX])
            taken.append(mine[random.permutation(len(mine))[here] if order.shuffle else here])
    return np.concatenate(taken)


def _by_difficulty(order: RowOrder, pool: Ints, curriculum: Curriculum, epoch: int) -> Ints:
    tie = np.random.default_rng([order.seed, epoch, _ARRANGE]).random(len(pool))
    if not order.shuffle:
        tie = np.arange(len(pool), dtype=np.float64)
    easy = np.lexsort((tie, curriculum.difficulty[pool]))
    if curriculum.buckets is None:
        return pool[easy]
    level = np.empty(len(pool), dtype=np.int64)
    level[easy] = np.arange(len(pool)) * curriculum.buckets // len(pool)
    return pool[np.lexsort((tie, level))]


def _interleaved(order: RowOrder, pool: Ints, epoch: int) -> Ints:
    """Return the rows with every source spread evenly over the epoch, or one source after another."""
    assert order.sources is not None
    random = np.random.default_rng([order.seed, epoch, _ARRANGE])
    source = order.sources[pool]
    when = np.empty(len(pool))  # in [0, 1] of the epoch
    for which in np.unique(source):
        mine = np.flatnonzero(source == which)
        ranks = random.permutation(len(mine)) if order.shuffle else np.arange(len(mine))
        when[mine] = (ranks + 0.5) / len(mine)
    return pool[np.lexsort((when, source))] if order.interleave == "in_turn" else pool[np.lexsort((source, when))]


@lru_cache(maxsize=4)
def _windows(order: RowOrder, per_step: int, epoch: int) -> Sequence[Ints]:
    """Return the rows of every step of an epoch."""
    rows = order.epoch(epoch)
    if order.groups is None:
        return [rows[i : i + per_step] for i in range(0, len(rows), per_step)]
    size = per_step * order.steps_per_group
    runs: list[tuple[int, Ints]] = []  # (position in the epoch, rows of consecutive steps of one group)
    group = order.groups[rows]
    for which in np.unique(group):
        mine = np.flatnonzero(group == which)
        runs += [(int(mine[i]), rows[mine[i : i + size]]) for i in range(0, len(mine), size)]
    runs.sort(key=lambda run: run[0])
    if order.shuffle and order.curriculum is None:
        runs = [runs[i] for i in np.random.default_rng([order.seed, epoch, _RUNS]).permutation(len(runs))]
    return [run[i : i + per_step] for _, run in runs for i in range(0, len(run), per_step)]


def amounts(sizes: Sequence[int], weights: Sequence[float], exhausted: Literal["first", "all"]) -> tuple[int, ...]:
    """Return the rows per epoch of every source, in proportion to ``weights``.

    The epoch ends when the ``first`` source with a positive weight is exhausted, or when ``all`` are (the smaller ones are
    then repeated), as in ``datasets.interleave_datasets``.

    >>> amounts([100, 30], [1, 1], "first"), amounts([100, 30], [1, 1], "all"), amounts([100, 30], [3, 1], "first")
    ((30, 30), (100, 100), (90, 30))
    """
    whole = [size / weight for size, weight in zip(sizes, weights, strict=True) if weight > 0]
    scale = min(whole) if exhausted == "first" else max(whole)
    return tuple(max(round(scale * weight), 1) if weight > 0 else 0 for weight in weights)
