"""Which arms of a race are stopped: the error spent, p by hand, and how often an arm is stopped wrongly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from alignkit_eval.comparison.paired import judge, minus
from alignkit_eval.comparison.racing import SPENDING, Measured, levels, smallest_p, stops
from alignkit_eval.statistics import Effect, effect
from scipy import stats

from tests.helpers.races import World, stopped, wrong_stops

CLUSTERS = [f"c{i // 2}" for i in range(40)]


def arms(*means: float, seeds: int = 2, seed_noise: float = 0.0, seed: int = 0) -> list[Effect]:
    draw = np.random.default_rng(seed)
    items, noise = draw.normal(0, 0.1, (len(means), seeds, 40)), draw.normal(0, seed_noise, (len(means), seeds, 1))
    return [effect(mean + items[i] + noise[i]) for i, mean in enumerate(means)]


def measured(effects: list[Effect], **about: bool) -> Measured:
    return Measured("m", **{"higher_is_better": True, **about}, effects=effects, clusters=CLUSTERS)


@pytest.mark.parametrize("spending", SPENDING)
@pytest.mark.parametrize("rungs", [[0.5], [0.25, 0.5, 0.75], [0.1, 0.2, 0.4, 0.8]])
def test_the_error_of_all_rungs_is_alpha(spending: str, rungs: list[float]) -> None:
    found = levels(rungs, 0.05, spending)
    assert sum(found) == pytest.approx(0.05)
    assert all(level > 0 for level in found)


def test_two_arms_have_the_standard_error_of_a_comparison_and_one_degree_of_freedom() -> None:
    effects = arms(0.5, 0.8, seed_noise=0.05)
    found = judge(minus(*effects), CLUSTERS)
    assert found.high is not None
    (stop,) = stops([measured(effects)], 1.0, planned=2, active=2)
    error = (found.high - found.diff) / stats.t.ppf(0.975, 1)
    assert (stop.arm, stop.than) == (0, 1)
    assert stop.shortfalls[0].p == pytest.approx(stats.t.cdf(found.diff / error, 1))
    assert stop.p == pytest.approx(stop.shortfalls[0].p * 2 * 1)  # two arms, one opponent each
    assert stop.shortfalls[0].high == pytest.approx(found.diff + stats.t.ppf(0.975, 1) * error)


def test_the_variance_over_seeds_is_pooled_over_arms() -> None:
    effects = arms(0.5, 0.5, 0.5, 0.9, seed_noise=0.05)
    theta = np.array([e.seeds for e in effects])
    residual = theta - theta.mean(1, keepdims=True) - theta.mean(0) + theta.mean()
    pooled, own = 2 * (residual**2).sum() / 3, (theta[0] - theta[3]).var(ddof=1)
    phi = (effects[0].influence - effects[3].influence).mean(0).reshape(20, 2).sum(1)
    items, seeds = 20 / 19 * (phi**2).sum(), max(pooled, own) / 2
    freedom = min((items + seeds) ** 2 / (items**2 / 19 + seeds**2 / 3), 3)
    p = stats.t.cdf((theta[0] - theta[3]).mean() / math.sqrt(items + seeds), freedom)
    found = next(stop for stop in stops([measured(effects)], 1.0, 4, 4) if stop.arm == 0)
    assert found.than == 3
    assert found.shortfalls[0].p == pytest.approx(p)


def test_with_one_seed_p_is_at_least_that_of_the_permutation_test() -> None:
    effects = arms(0.5, 0.56, seeds=1)
    found = judge(minus(*effects), CLUSTERS)
    assert found.p is not None
    (stop,) = stops([measured(effects)], 1.0, 2, 2)
    assert stop.shortfalls[0].p >= found.p / 2


def test_one_direction_and_all_deciding_metrics() -> None:
    effects = arms(0.2, 0.8, seeds=6)
    assert [stop.arm for stop in stops([measured(effects)], 0.01, 2, 2)] == [0]
    assert [stop.arm for stop in stops([measured(effects, higher_is_better=False)], 0.01, 2, 2)] == [1]
    assert (
        stops([measured(effects), measured(effects[::-1])], 0.01, 2, 2) == []
    )  # worse by one metric, better by the other
    both = stops([measured(effects), measured(arms(0.3, 0.8, seeds=6, seed=1))], 0.01, 2, 2)
    assert [len(stop.shortfalls) for stop in both] == [2]


def test_a_metric_in_logarithms_is_shown_in_its_own_unit() -> None:
    effects = arms(math.log(4), math.log(2), seeds=6)
    (stop,) = stops([measured(effects, higher_is_better=False, log=True)], 0.01, 2, 2)
    (fall,) = stop.shortfalls
    assert fall.diff == pytest.approx(2, abs=0.2)
    assert fall.low is not None
    assert fall.high is not None
    assert fall.low < fall.diff < fall.high


def test_an_arm_left_makes_room_for_the_others() -> None:
    """Holm over arms: the factor is that of the arms that are left, planned opponents stay."""
    effects = arms(0.1, 0.3, 0.5, 0.5, seeds=6, seed_noise=0.02)
    found = stops([measured(effects)], 1.0, planned=6, active=5)
    factors = [stop.p / stop.shortfalls[0].p for stop in found]
    assert factors == pytest.approx([5 * 5, 4 * 5, 3 * 5][: len(found)])
    assert len(found) >= 2


@pytest.mark.parametrize("seeds", [1, 2])
def test_equal_arms_and_one_cluster_stop_nobody(seeds: int) -> None:
    same = arms(0.5, seeds=seeds) * 3
    assert stops([measured(same)], 0.05, 3, 3) == []
    one = Measured("m", True, arms(0.1, 0.9, seeds=seeds), ["c"] * 40)
    assert stops([one], 0.05, 2, 2) == []
    assert stops([measured(same[:1])], 0.05, 3, 1) == []


def test_few_clusters_and_one_seed_cannot_reach_a_small_level() -> None:
    assert smallest_p(1, 5) == 1 / 32
    assert smallest_p(1, 1) == 1
    clusters = [str(i // 8) for i in range(40)]
    assert stops([Measured("m", True, arms(0.1, 0.9, seeds=1), clusters)], 0.05, 2, 2) == []


@pytest.mark.parametrize(
    "world", [World(arms=6, seed_noise=0.15), World(arms=4, seeds=1, seed_noise=0.0)], ids=["2 seeds", "1 seed"]
)
def test_null_races_stop_an_arm_in_at_most_five_percent(world: World) -> None:
    share = wrong_stops(world, 150)
    assert share <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 150)


def test_a_worse_arm_is_stopped_and_its_equals_are_not() -> None:
    world = World(arms=8, effects=(0,) * 7 + (-0.5,))
    draw = np.random.default_rng(0)
    gone = [set().union(*stopped(world, draw)) for _ in range(20)]
    assert all(7 in one for one in gone)
    assert wrong_stops(replace(world, seed_noise=0.1), 60) <= 0.1
