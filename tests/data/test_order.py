"""Rows of epochs and steps: mixes, curricula, groups, phases, and the permutation of earlier versions."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from alignkit.contract.types import Reuse
from alignkit.data.order import RowOrder
from alignkit_order.mixed import Curriculum, MixedOrder, Phase, amounts
from hypothesis import given
from hypothesis import strategies as st

ONCE = Reuse()
N = st.integers(1, 40)
PER_STEP = st.integers(1, 12)
SEED = st.integers(0, 5)


def steps_of(order: RowOrder, per_step: int, epoch: int) -> list[list[int]]:
    per_epoch = order.per_epoch(per_step, ONCE, whole=False)
    return [order.step(per_step, epoch * per_epoch + i, 10_000) for i in range(per_epoch)]


@given(N, PER_STEP, SEED, st.integers(0, 4))
def test_every_epoch_passes_over_every_row_once(n: int, per_step: int, seed: int, epoch: int) -> None:
    order = RowOrder(n, seed)
    steps = steps_of(order, per_step, epoch)
    assert len(steps) == -(-n // per_step)
    assert sorted(row for step in steps for row in step) == list(range(n))
    assert all(len(step) == per_step for step in steps[:-1])
    # The order of earlier versions, so that their runs can be resumed.
    whole = np.random.default_rng([seed, epoch]).permutation(n).tolist()
    assert [row for step in steps for row in step] == whole == order.taken(per_step, epoch)


@given(N, PER_STEP, SEED)
def test_a_step_depends_on_its_number_alone(n: int, per_step: int, seed: int) -> None:
    forwards = [RowOrder(n, seed).step(per_step, step, 9) for step in range(9)]
    backwards = [RowOrder(n, seed).step(per_step, step, 9) for step in reversed(range(9))][::-1]
    assert forwards == backwards


def test_order_depends_on_seed_and_epoch_and_shuffle() -> None:
    orders = [tuple(RowOrder(50, seed).step(50, step, 2)) for seed in range(2) for step in range(2)]
    assert len(set(orders)) == 4
    assert RowOrder(5, 3, shuffle=False).step(5, 1, 2) == [0, 1, 2, 3, 4]


def test_rollouts_are_full_across_the_borders_of_epochs() -> None:
    order = RowOrder(5, 0)
    rows = [order.rollout(3, number, 100) for number in range(5)]
    assert all(len(rollout) == 3 for rollout in rows)
    assert Counter(row for rollout in rows for row in rollout) == dict.fromkeys(range(5), 3)
    assert order.per_epoch(2, Reuse(epochs=2, minibatches=2), whole=True) == 4


# ------------------------------------------------------------------------------------------------ several sources


def two(a: int, b: int, taken: tuple[int, int], **options: object) -> RowOrder:
    return MixedOrder(a + b, 1, sources=np.repeat([0, 1], [a, b]), amounts=taken, **options)  # type: ignore[arg-type]


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 50), st.integers(1, 50))
def test_an_epoch_takes_the_amounts_and_passes_go_on(a: int, b: int, take_a: int, take_b: int) -> None:
    order = two(a, b, (take_a, take_b))
    seen: Counter[int] = Counter()
    for epoch in range(4):
        rows = order.epoch(epoch).tolist()
        assert sum(row < a for row in rows) == take_a
        assert len(rows) == take_a + take_b == order.size
        seen.update(rows)
        for low, high, taken in ((0, a, take_a), (a, a + b, take_b)):
            counts = [seen[row] for row in range(low, high)]
            assert max(counts) - min(counts) <= 1, "no row is seen twice before every one was seen once"
            assert sum(counts) == taken * (epoch + 1)


def test_amounts_by_hand() -> None:
    assert amounts([1000, 100], [0.9, 0.1], "first") == (900, 100)
    assert amounts([1000, 100], [0.9, 0.1], "all") == (1000, 111)
    assert amounts([10, 10, 10], [1, 0, 2], "first") == (5, 0, 10)


def test_interleaving() -> None:
    even = two(8, 4, (8, 4), interleave="even").epoch(0)
    for start in range(0, 12, 3):
        assert sum(row >= 8 for row in even[start : start + 3]) == 1, "one in three of every stretch of three"
    turn = two(8, 4, (8, 4), interleave="in_turn").epoch(0)
    assert all(row < 8 for row in turn[:8])
    assert sorted(turn.tolist()) == list(range(12))
    mixed = two(8, 4, (8, 4)).epoch(0).tolist()
    assert sorted(mixed) == list(range(12))
    assert mixed != turn.tolist()
    assert two(3, 2, (3, 2), interleave="in_turn", shuffle=False).epoch(5).tolist() == [0, 1, 2, 3, 4]


# ------------------------------------------------------------------------------------------------ curriculum


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 5), SEED)
def test_easy_rows_come_first(difficulty: list[int], buckets: int, seed: int) -> None:
    values = np.array(difficulty, dtype=np.float64)
    strict = MixedOrder(len(values), seed, curriculum=Curriculum(values)).epoch(0)
    assert values[strict].tolist() == sorted(difficulty)
    rough = MixedOrder(len(values), seed, curriculum=Curriculum(values, buckets=buckets)).epoch(0)
    assert sorted(rough.tolist()) == list(range(len(values)))
    level = np.arange(len(values)) * buckets // len(values)
    for which in range(buckets):  # every level has the same rows, in any order
        assert sorted(values[rough[level == which]]) == np.sort(values)[level == which].tolist()


def test_a_curriculum_for_the_first_epochs_and_other_orders_every_epoch() -> None:
    difficulty = np.arange(12.0)[::-1].copy()
    order = MixedOrder(12, 0, curriculum=Curriculum(difficulty, buckets=3, epochs=2))
    first, second, third = (order.epoch(epoch).tolist() for epoch in range(3))
    assert first != second
    for epoch in (first, second):
        assert [sorted(epoch[i : i + 4]) for i in (0, 4, 8)] == [[8, 9, 10, 11], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert third == MixedOrder(12, 0).epoch(2).tolist()


# ------------------------------------------------------------------------------------------------ groups


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), PER_STEP, st.integers(1, 4), SEED, st.integers(0, 2))
def test_the_rows_of_a_step_share_their_group(
    groups: list[int], per_step: int, stay: int, seed: int, epoch: int
) -> None:
    order = MixedOrder(len(groups), seed, groups=np.array(groups), steps_per_group=stay)
    steps = steps_of(order, per_step, epoch)
    assert all(len({groups[row] for row in step}) == 1 for step in steps)
    assert sorted(row for step in steps for row in step) == list(range(len(groups)))
    assert order.taken(per_step, epoch) == [row for step in steps for row in step]


def test_steps_per_group() -> None:
    order = MixedOrder(24, 0, groups=np.repeat([0, 1], 12), steps_per_group=3)
    which = [order.step(2, step, 100)[0] // 12 for step in range(12)]
    runs = [len(list(run)) for _, run in groupby(which)]
    assert all(length % 3 == 0 for length in runs)
    assert len(set(which)) == 2


# ------------------------------------------------------------------------------------------------ phases


def test_phases_change_the_mix_and_resume_exactly() -> None:
    sources = np.repeat([0, 1], [20, 20])
    phases = (Phase(0.5, (20, 0)), Phase(1.0, (5, 15)))
    order = MixedOrder(40, 0, sources=sources, phases=phases)
    steps = [order.step(4, step, 20) for step in range(20)]
    assert all(row < 20 for step in steps[:10] for row in step)
    late = [row for step in steps[10:15] for row in step]
    assert sum(row < 20 for row in late) == 5
    assert order.size == 40
    again = MixedOrder(40, 0, sources=sources, phases=phases)
    assert [again.step(4, step, 20) for step in (17, 3, 12)] == [steps[17], steps[3], steps[12]]
    assert all(row < 20 for row in order.rollout(8, 0, 10))


@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_phases_of_short_trainings(total: int) -> None:
    order = MixedOrder(
        8, 0, sources=np.repeat([0, 1], 4), phases=(Phase(0.3, (4, 0)), Phase(0.6, (0, 4)), Phase(1.0, (4, 4)))
    )
    assert all(len(order.step(2, step, total)) == 2 for step in range(total))
