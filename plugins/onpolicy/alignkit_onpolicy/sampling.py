"""Dynamic sampling: groups whose answers all have one reward teach nothing, and are replaced by those of further prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from alignkit import Batch, Rollouts

logger = logging.getLogger(__name__)


def informative(batch: Batch, rollouts: Rollouts, answers: int, *, rounds: int) -> Batch:
    """Sample ``answers`` for every row, and replace groups of equal rewards, in at most ``rounds`` rounds (DAPO, arXiv:2503.14476, section 3.2).

    The prompt of such a group gives way to the next one of the run, so that the batch keeps its number of groups. Which
    prompts these are does not depend on the number of processes. ``batch.shared`` counts ``groups_refilled`` and
    ``refill_rounds``; groups that are alike after the last round stay, and a warning says so once. An evaluation replaces
    none.
    """
    batch = rollouts.sample(batch, answers)
    if not rounds or not rollouts.training:
        return batch
    refilled = used = 0
    missing = _missing(batch, rollouts)
    while missing and used < rounds:
        wanted = alike(batch)
        batch = _replaced(batch, rollouts.sample(rollouts.further(wanted), answers), wanted)
        refilled, used = refilled + missing, used + 1
        missing = _missing(batch, rollouts)
    if missing:
        _say_missing(rounds)
    return batch.with_shared(groups_refilled=float(refilled), refill_rounds=float(used))


def alike(batch: Batch) -> list[bool]:
    """Return for each row whether all of its answers have the same reward."""
    return [min(rewards) == max(rewards) for rewards in batch.columns["reward"]]


def best_and_worst(batch: Batch) -> list[tuple[int, int]]:
    """Return for each row the positions of its answers with the highest and the lowest reward, the first ones of equal answers.

    They differ unless all rewards are equal.
    """
    return [(rewards.index(max(rewards)), rewards.index(min(rewards))) for rewards in batch.columns["reward"]]


def _missing(batch: Batch, rollouts: Rollouts) -> int:
    return int(rollouts.total(sum(alike(batch)))[0])


def _replaced(batch: Batch, fresh: Batch, wanted: Sequence[bool]) -> Batch:
    """Return the batch with the rows of ``fresh`` in the places of the rows that are marked, in their order."""
    ours = [i for i, mark in enumerate(wanted) if mark]

    def merged(old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
        values = list(old)
        for i, value in zip(ours, new, strict=True):
            values[i] = value
        return values

    def both(old: Any, new: Any) -> dict[str, Any]:
        return {name: merged(values, new[name] if ours else ()) for name, values in old.items()}

    return replace(
        batch,
        examples=merged(batch.examples, fresh.examples),
        columns=both(batch.columns, fresh.columns),
        row_counts=both(batch.row_counts, fresh.row_counts),
    )


@cache
def _say_missing(rounds: int) -> None:
    """Log it once."""
    logger.warning(
        "dynamic sampling: after %d rounds (method.refill_rounds) there are still groups whose answers all have the same "
        "reward, so rollouts train on fewer groups; the metric groups_alike has their share",
        rounds,
    )
