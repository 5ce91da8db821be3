"""The rows of every epoch, optimizer step and rollout.

They are a pure function of the rows, the settings, the seed and the step number, so that a resumed run takes exactly the rows
of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from alignkit.config import DataConfig
from alignkit.contract import Reuse
from alignkit.contract.registry import provided
from alignkit.data.table.tokenised_rows import TokenisedRows
from alignkit.errors import ConfigError

Ints = NDArray[np.int64]

Margins = Callable[[], NDArray[np.float64]]
"""Computes log p(chosen) - log p(rejected) under the start model, ``[rows]``, in nats."""


@dataclass(frozen=True, eq=False)
class RowOrder:
    """The order of the training rows: a new permutation every epoch; a subclass (``align.orders``) may have another one.

    Args:
        rows: number of training rows.
        seed: seed of every shuffle.
        shuffle: whether every epoch has a new order; otherwise the order of the data.
    """

    rows: int
    seed: int
    shuffle: bool = True

    # ------------------------------------------------------------------ what a subclass may change

    @property
    def size(self) -> int:
        """Rows per epoch."""
        return self.rows

    @property
    def regular(self) -> bool:
        """Whether all epochs have the same number of steps."""
        return True

    def arranged(self, epoch: int) -> Ints:
        """Return the rows of an epoch in their order."""
        return (
            np.random.default_rng([self.seed, epoch]).permutation(self.rows) if self.shuffle else np.arange(self.rows)
        )

    def divided(self, rows: Ints, per_step: int, epoch: int) -> Sequence[Ints]:
        """Return the rows of an epoch divided into those of its steps."""
        return [rows[i : i + per_step] for i in range(0, len(rows), per_step)]

    def part(self, number: int, total: int) -> tuple[RowOrder, int]:
        """Return the order that holds at step ``number`` of ``total``, and the step's number in it."""
        return self, number

    def described(self, names: Sequence[str]) -> Iterator[str]:
        """Yield a line per source with the rows an epoch takes; nothing if every row is taken once."""
        yield from ()

    # ------------------------------------------------------------------ what the engine calls

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
        order, step = self.part(step, total)
        epoch = 0
        if order.regular:
            epoch, step = divmod(step, len(_windows(order, per_step, 0)))
        while step >= (steps := len(_windows(order, per_step, epoch))):
            step -= steps
            epoch += 1
        return [int(i) for i in _windows(order, per_step, epoch)[step]]

    def rollout(self, per_rollout: int, number: int, total: int, skipped: int = 0) -> list[int]:
        """Return the rows of rollout ``number`` (from 0) of ``total``, ``skipped`` rows later; each is full and may span two epochs."""
        order, number = self.part(number, total)
        size = order.size
        positions = range(number * per_rollout + skipped, (number + 1) * per_rollout + skipped)
        return [int(order.epoch(position // size)[position % size]) for position in positions]


@lru_cache(maxsize=4)
def _epoch(order: RowOrder, number: int) -> Ints:
    return order.arranged(number)


@lru_cache(maxsize=4)
def _windows(order: RowOrder, per_step: int, epoch: int) -> Sequence[Ints]:
    """Return the rows of every step of an epoch."""
    return order.divided(order.epoch(epoch), per_step, epoch)


def row_order(data: DataConfig, train: TokenisedRows, seed: int, margins: Margins | None = None) -> RowOrder:
    """Return the order of the training rows; ``margins`` is called for a curriculum by the start model's margin.

    Raises:
        ConfigError: a name is unknown, or the rows do not support the order.
        DataError: a row lacks a column that the order needs, or has no number in it.
    """
    make = provided("align.orders", "rows")
    if make is None:
        raise ConfigError("no installed package orders the training rows (entry-point group align.orders)")
    order: RowOrder = make(data, train, seed, margins)
    return order
