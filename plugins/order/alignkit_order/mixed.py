"""Orders of rows from several sources, by difficulty, in groups, and in phases of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from alignkit.data.order import Ints, RowOrder
from numpy.typing import NDArray

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
class MixedOrder(RowOrder):
    """The order of the training rows: by default, a new permutation every epoch.

    Args:
        sources: index of every row's source, ``[rows]`` (None: one source).
        amounts: rows per epoch of every source, possibly more than it has (None: each row once).
        interleave: sources shuffled together, spread evenly over the epoch, or one after another.
        curriculum: order by difficulty.
        groups: index of every row's group, ``[rows]``; all rows of a step are from one group.
        steps_per_group: consecutive steps drawn from one group.
        phases: amounts by training progress, instead of ``amounts``.
    """

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

    @property
    def regular(self) -> bool:
        return self.groups is None  # with groups, epochs can differ in length

    def arranged(self, epoch: int) -> Ints:
        ordered = self.curriculum
        if ordered is not None and (ordered.epochs is None or epoch < ordered.epochs):
            return _by_difficulty(self, _pool(self, epoch), ordered, epoch)
        if self.sources is not None and self.interleave != "random":
            return _interleaved(self, _pool(self, epoch), epoch)
        if self.amounts is None:
            return super().arranged(epoch)
        pool = _pool(self, epoch)
        return (
            pool[np.random.default_rng([self.seed, epoch, _ARRANGE]).permutation(len(pool))] if self.shuffle else pool
        )

    def divided(self, rows: Ints, per_step: int, epoch: int) -> Sequence[Ints]:
        if self.groups is None:
            return super().divided(rows, per_step, epoch)
        size = per_step * self.steps_per_group
        runs: list[tuple[int, Ints]] = []  # (position in the epoch, rows of consecutive steps of one group)
        group = self.groups[rows]
        for which in np.unique(group):
            mine = np.flatnonzero(group == which)
            runs += [(int(mine[i]), rows[mine[i : i + size]]) for i in range(0, len(mine), size)]
        runs.sort(key=lambda run: run[0])
        if self.shuffle and self.curriculum is None:
            runs = [runs[i] for i in np.random.default_rng([self.seed, epoch, _RUNS]).permutation(len(runs))]
        return [run[i : i + per_step] for _, run in runs for i in range(0, len(run), per_step)]

    def part(self, number: int, total: int) -> tuple[RowOrder, int]:
        """Return the order of the phase a step belongs to, and the step's number in that phase."""
        if not self.phases:
            return self, number
        begins = [0, *(round(phase.until * total) for phase in self.phases[:-1])]
        which = max(i for i, begin in enumerate(begins) if begin <= number)
        return _phase_orders(self)[which], number - begins[which]

    def described(self, names: Sequence[str]) -> Iterator[str]:
        if self.sources is None or self.amounts is None:
            return
        for name, size, amount in zip(names, np.bincount(self.sources), self.amounts, strict=False):
            yield (
                f"{name}: {amount:,} rows per epoch of {size:,} ({amount / max(size, 1):.2f} times), "
                f"{amount / self.size:.1%} of all"
            )


@lru_cache(maxsize=4)
def _phase_orders(order: MixedOrder) -> tuple[MixedOrder, ...]:
    return tuple(
        replace(order, phases=(), amounts=phase.amounts, seed=order.seed + 1_000_003 * number)
        for number, phase in enumerate(order.phases, 1)
    )


def _pool(order: MixedOrder, epoch: int) -> Ints:
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


def _by_difficulty(order: MixedOrder, pool: Ints, curriculum: Curriculum, epoch: int) -> Ints:
    tie = np.random.default_rng([order.seed, epoch, _ARRANGE]).random(len(pool))
    if not order.shuffle:
        tie = np.arange(len(pool), dtype=np.float64)
    easy = np.lexsort((tie, curriculum.difficulty[pool]))
    if curriculum.buckets is None:
        return pool[easy]
    level = np.empty(len(pool), dtype=np.int64)
    level[easy] = np.arange(len(pool)) * curriculum.buckets // len(pool)
    return pool[np.lexsort((tie, level))]


def _interleaved(order: MixedOrder, pool: Ints, epoch: int) -> Ints:
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
