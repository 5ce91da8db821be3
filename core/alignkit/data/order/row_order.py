"""Which rows an epoch takes, in which order, and which of them an optimizer step takes.

All of it is a function of the rows, the settings, the seed and the number of the step, so that a resumed run goes on with
exactly the rows it would have had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignkit.contract.types import Reuse

Ints = NDArray[np.int64]
Interleave = Literal["random", "even", "in_turn"]

_MIX, _ARRANGE, _RUNS = 1, 2, 3  # streams of random numbers that must not be one another's


class Curriculum(NamedTuple):
    """Easy rows before hard ones."""

    difficulty: NDArray[np.float64]
    """Of every row, small is easy, ``[rows]``."""
    buckets: int | None = None
    """Rows are shuffled within so many levels of about one size; None sorts them strictly."""
    epochs: int | None = None
    """How many epochs are ordered; None: all."""


class Phase(NamedTuple):
    """A part of training with amounts of its own."""

    until: float
    """Share of the steps at which it ends."""
    amounts: tuple[int, ...]
    """Rows of every source that an epoch takes."""


@dataclass(frozen=True, eq=False)
class RowOrder:
    """The order of ``rows`` training rows, without more settings a permutation an epoch.

    Args:
        rows: how many there are.
        seed: of every shuffle.
        shuffle: a new order in every epoch; else the rows as they stand.
        sources: the number of the source every row comes from, ``[rows]`` (None: one source).
        amounts: rows of every source that an epoch takes, more than it has or fewer (None: each row once).
        interleave: sources shuffled together, spread evenly over the epoch, or one after another.
        curriculum: easy rows first.
        groups: the number of every row's group, ``[rows]``: the rows of a step share theirs.
        steps_per_group: steps on one group before the next one's turn.
        phases: amounts over training progress, in place of ``amounts``.
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
        """Rows of an epoch (with phases: of the rows as they are)."""
        return self.rows if self.amounts is None or self.phases else sum(self.amounts)

    def per_epoch(self, per_step: int, reuse: Reuse, *, whole: bool) -> int:
        """Return how many optimizer steps an epoch has, ``reuse`` a batch; ``whole``: no rollout is cut short."""
        if not whole and reuse.steps == 1:
            return len(self._windows(per_step, 0))
        return max(self.size // (per_step * reuse.minibatches), 1) * reuse.steps

    def epoch(self, number: int) -> Ints:
        """Return the rows of an epoch in their order."""
        return _epoch(self, number)

    def taken(self, per_step: int, epoch: int) -> list[int]:
        """Return the rows of an epoch as its steps take them."""
        return [int(row) for window in self._windows(per_step, epoch) for row in window]

    def step(self, per_step: int, step: int, total: int) -> list[int]:
        """Return the rows of optimizer step ``step`` (from 0) of ``total``; the last one of an epoch may be short."""
        order, step = self._phase(step, total)
        epoch = 0
        if order.groups is None:
            epoch, step = divmod(step, len(order._windows(per_step, 0)))
        while step >= len(order._windows(per_step, epoch)):  # the epochs of grouped rows need not be of one length
            step -= len(order._windows(per_step, epoch))
            epoch += 1
        return [int(i) for i in order._windows(per_step, epoch)[step]]

    def rollout(self, per_rollout: int, number: int, total: int) -> list[int]:
        """Return the rows of rollout ``number`` (from 0) of ``total``: every one full, across the borders of epochs."""
        order, number = self._phase(number, total)
        places = range(number * per_rollout, (number + 1) * per_rollout)
        size = order.size
        return [int(order.epoch(place // size)[place % size]) for place in places]

    def _phase(self, number: int, total: int) -> tuple[RowOrder, int]:
        """Return the order a step belongs to, and the number of the step in it."""
        if not self.phases:
            return self, number
        begins = [0, *(round(phase.until * total) for phase in self.phases[:-1])]
        which = max(i for i, begin in enumerate(begins) if begin <= number)
        return self._phase_orders[which], number - begins[which]

    @property
    def _phase_orders(self) -> tuple[RowOrder, ...]:
        return _phase_orders(self)

    def _windows(self, per_step: int, epoch: int) -> Sequence[Ints]:
        return _windows(self, per_step, epoch)


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
    """Return the rows an epoch takes, source by source: each source goes on where the epoch before left it."""
    if order.amounts is None or order.sources is None:
        return np.arange(order.rows)
    taken: list[Ints] = []
    for source, amount in enumerate(order.amounts):
        mine = np.flatnonzero(order.sources == source)
        places = np.arange(epoch * amount, (epoch + 1) * amount)
        for number in range(epoch * amount // max(len(mine), 1), -(-(epoch + 1) * amount // max(len(mine), 1))):
            here = places[places // len(mine) == number] % len(mine)
            again = np.arange(len(mine))
            if order.shuffle:
                again = np.random.default_rng([order.seed, source, number, _MIX]).permutation(len(mine))
            taken.append(mine[again[here]])
    return np.concatenate(taken)


def _by_difficulty(order: RowOrder, pool: Ints, curriculum: Curriculum, epoch: int) -> Ints:
    lot = np.random.default_rng([order.seed, epoch, _ARRANGE]).random(len(pool))
    if not order.shuffle:
        lot = np.arange(len(pool), dtype=np.float64)
    easy = np.lexsort((lot, curriculum.difficulty[pool]))
    if curriculum.buckets is None:
        return pool[easy]
    level = np.empty(len(pool), dtype=np.int64)
    level[easy] = np.arange(len(pool)) * curriculum.buckets // len(pool)
    return pool[np.lexsort((lot, level))]


def _interleaved(order: RowOrder, pool: Ints, epoch: int) -> Ints:
    """Spread every source evenly over the epoch, or take one after another."""
    assert order.sources is not None
    draw = np.random.default_rng([order.seed, epoch, _ARRANGE])
    source = order.sources[pool]
    place = np.empty(len(pool))
    for which in np.unique(source):
        mine = np.flatnonzero(source == which)
        ranks = draw.permutation(len(mine)) if order.shuffle else np.arange(len(mine))
        place[mine] = (ranks + 0.5) / len(mine)
    return pool[np.lexsort((place, source))] if order.interleave == "in_turn" else pool[np.lexsort((source, place))]


@lru_cache(maxsize=4)
def _windows(order: RowOrder, per_step: int, epoch: int) -> Sequence[Ints]:
    """Return the rows of every step of an epoch."""
    rows = order.epoch(epoch)
    if order.groups is None:
        return [rows[i : i + per_step] for i in range(0, len(rows), per_step)]
    long = per_step * order.steps_per_group
    runs: list[tuple[int, Ints]] = []  # each with its place in the epoch
    group = order.groups[rows]
    for which in np.unique(group):
        mine = np.flatnonzero(group == which)
        runs += [(int(mine[i]), rows[mine[i : i + long]]) for i in range(0, len(mine), long)]
    runs.sort(key=lambda run: run[0])
    if order.shuffle and order.curriculum is None:
        runs = [runs[i] for i in np.random.default_rng([order.seed, epoch, _RUNS]).permutation(len(runs))]
    return [run[i : i + per_step] for _, run in runs for i in range(0, len(run), per_step)]


def amounts(sizes: Sequence[int], weights: Sequence[float], exhausted: Literal["first", "all"]) -> tuple[int, ...]:
    """Return the rows of every source that an epoch takes, in the shares ``weights``.

    The epoch ends when the ``first`` source that has a share was passed over once, or when ``all`` were (the others then
    several times), as ``datasets.interleave_datasets`` has it.

    >>> amounts([100, 30], [1, 1], "first"), amounts([100, 30], [1, 1], "all"), amounts([100, 30], [3, 1], "first")
    ((30, 30), (100, 100), (90, 30))
    """
    whole = [size / weight for size, weight in zip(sizes, weights, strict=True) if weight > 0]
    choose: Callable[[Sequence[float]], float] = min if exhausted == "first" else max
    scale = choose(whole)
    return tuple(max(round(scale * weight), 1) if weight > 0 else 0 for weight in weights)
