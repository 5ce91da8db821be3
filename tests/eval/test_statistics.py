"""Intervals against closed forms, against the textbook formulas, and by coverage."""

import math

import numpy as np
import pytest
from alignkit import Estimate
from alignkit_eval.statistics import (
    clustered_mean,
    clustered_proportion,
    clustered_ratio,
    fit_ratio,
    proportion_interval,
    transformed,
    wilson,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

# Student's t with 2 degrees of freedom has a closed-form quantile, (2p - 1) / sqrt(2p (1 - p)): 4.3027 at p = .975.
T_TWO = 0.95 / math.sqrt(2 * 0.975 * 0.025)


def test_singleton_clusters_give_the_usual_t_interval() -> None:
    x = [2.0, 4.0, 4.0, 5.0, 7.0]
    expected = stats.t.interval(0.95, 4, loc=np.mean(x), scale=stats.sem(x))
    got = clustered_mean(x, range(5))
    assert got == pytest.approx((4.4, *expected), rel=1e-12)


def test_clustered_mean_by_hand() -> None:
    # Mean 0.5. Residual sums by cluster: a: (1 - .5) + (1 - .5) = 1; b: -.5; c: -.5.
    # C/(C-1) * (1 + .25 + .25) / n^2 = 3/2 * 1.5 / 16, so variance of the mean 2.25 / 16.
    half = T_TWO * math.sqrt(2.25) / 4
    got = clustered_mean([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "c"])
    assert got == pytest.approx((0.5, 0.5 - half, 0.5 + half), rel=1e-12)


def test_ratio_by_hand() -> None:
    # r = (2 + 3 + 7) / (1 + 2 + 3) = 2; residuals a - 2b: 0, -1, 1; variance = 3/2 * 2 / 6^2 = 1/12.
    half = T_TWO * math.sqrt(1 / 12)
    got = clustered_ratio([2.0, 3.0, 7.0], [1.0, 2.0, 3.0], ["x", "y", "z"])
    assert got == pytest.approx((2.0, 2 - half, 2 + half), rel=1e-12)


def test_repeating_every_item_inside_its_cluster_adds_no_information() -> None:
    x, clusters = [0.1, 0.9, 0.4, 0.4], ["a", "b", "c", "d"]
    assert clustered_mean(np.repeat(x, 5), np.repeat(clusters, 5).tolist()) == pytest.approx(
        clustered_mean(x, clusters)
    )


@pytest.mark.parametrize("values", [[0.3], [1.0, 0.0, 1.0]])
def test_one_cluster_has_no_interval(values: list[float]) -> None:
    value = float(np.mean(values))
    assert clustered_mean(values, ["a"] * len(values)) == Estimate(value)
    assert clustered_proportion(values, ["a"] * len(values)) == Estimate(value)


@pytest.mark.parametrize(
    ("a", "b", "clusters", "message"),
    [
        ([], [], [], "at least one"),
        ([1.0], [1.0, 2.0], ["x"], "numbers must be equal"),
        ([math.nan], [1.0], ["x"], "not finite"),
        ([1.0], [0.0], ["x"], "positive sum"),
    ],
)
def test_what_cannot_be_estimated_is_refused(a: list[float], b: list[float], clusters: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_ratio(a, b, clusters)


def test_proportions_outside_zero_and_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        clustered_proportion([0.5, 1.5], ["a", "b"])


def test_wilson_against_scipy() -> None:
    expected = stats.binomtest(7, 50).proportion_ci(0.95, method="wilson")
    assert wilson(7 / 50, 50) == pytest.approx((expected.low, expected.high), rel=1e-10)


@pytest.mark.parametrize(("value", "end"), [(1.0, 0), (0.0, 1)])
def test_a_perfect_proportion_gets_an_interval_over_clusters(value: float, end: int) -> None:
    # 20 items in 10 clusters. The posterior Beta(11, 1) has the distribution function x^11; at p = 0 it is the mirror image.
    got = clustered_proportion([value] * 20, [i // 2 for i in range(20)])
    ends = (0.025 ** (1 / 11), 1.0) if value else (0.0, 1 - 0.025 ** (1 / 11))
    assert got == pytest.approx((value, *ends), rel=1e-12)
    assert got[1 + end] != value or got[2 - end] != value


def test_ties_alone_do_not_give_an_interval_without_width() -> None:
    got = clustered_proportion([0.5] * 8, range(8))
    assert got.low is not None
    assert got.high is not None
    assert got.low < 0.4 < 0.6 < got.high


@pytest.mark.parametrize(("items", "exact"), [(50, True), (299, True), (300, False), (2000, False)])
def test_credits_have_a_beta_binomial_interval_below_a_few_hundred_and_wilsons_from_there(
    items: int, exact: bool
) -> None:
    right = round(items * 0.14)
    ends = stats.beta(1 + right, 1 + items - right).interval(0.95) if exact else wilson(right / items, items)
    credits = [1.0] * right + [0.0] * (items - right)
    assert clustered_proportion(credits, range(items)) == pytest.approx((right / items, *ends), rel=1e-12)
    # Every item twice, in one cluster: as many trials, less what the estimated variance costs.
    got = clustered_proportion([c for c in credits for _ in (0, 1)], [i // 2 for i in range(2 * items)])
    trials = (items - 1) * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, items - 1)) ** 2
    assert got == pytest.approx((right / items, *proportion_interval(right / items, trials)))


def test_the_two_intervals_of_a_proportion_meet() -> None:
    few, many = (np.array(proportion_interval(0.3, trials)) for trials in (299.999, 300.001))
    assert np.abs(few - many).max() < 2e-3


@pytest.mark.parametrize("trials", [5, 20, 50, 200])
def test_coverage_of_the_interval_of_few_trials(trials: int) -> None:
    """Exact coverage, averaged over proportions as the prior has them, is 95 %: the definition of the posterior's interval."""
    truth = (np.arange(400) + 0.5) / 400
    covered = np.zeros(400)
    for hits in range(trials + 1):
        low, high = proportion_interval(hits / trials, trials)
        covered += stats.binom.pmf(hits, trials, truth) * ((low <= truth) & (truth <= high))
    assert covered.mean() == pytest.approx(0.95, abs=0.012)


def test_a_bounded_score_with_little_spread_has_a_short_interval_inside_its_bounds() -> None:
    scores = [0.45, 0.55] * 50
    got, t = clustered_proportion(scores, range(100)), clustered_mean(scores, range(100))
    assert got.low == pytest.approx(t.low, abs=1e-3)
    near = clustered_proportion([0.0] * 9 + [0.2], range(10))
    assert near.low is not None
    assert 0 <= near.low < 0.02 < near.high <= 1  # type: ignore[operator]
    assert clustered_mean([0.0] * 9 + [0.2], range(10)).low < 0  # type: ignore[operator]


def test_no_flawed_score_looks_surer_than_a_perfect_one() -> None:
    rows = [clustered_proportion([1.0] * right + [0.0] * (100 - right), range(100)) for right in range(50, 101)]
    lows = [row.low for row in rows if row.low is not None]
    assert len(lows) == 51
    assert max(lows) == lows[-1]


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 5)), min_size=1, max_size=40))
def test_a_proportions_interval_holds_it_and_stays_inside(rows: list[tuple[float, int]]) -> None:
    got = clustered_proportion([c for c, _ in rows], [k for _, k in rows])
    if len({k for _, k in rows}) == 1:
        assert got.low is got.high is None
    else:
        assert 0 <= got.low <= got.value <= got.high <= 1
        assert got.high > got.low


@given(st.permutations(range(12)))
def test_order_does_not_matter(order: list[int]) -> None:
    rng = np.random.default_rng(0)
    a, b, clusters = rng.normal(size=12), rng.uniform(1, 9, size=12), rng.integers(4, size=12)
    expected = clustered_ratio(a, b, clusters.tolist())
    assert clustered_ratio(a[order], b[order], clusters[order].tolist()) == pytest.approx(expected, rel=1e-12)


def test_coverage_with_items_that_depend_on_their_cluster() -> None:
    # 40 clusters of 5 with a shared effect: the clustered interval covers the truth about 95 % of the time, the plain one,
    # which treats 200 items as independent, far less often.
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(40), 5).tolist()
    held = {"clustered": 0, "plain": 0}
    for _ in range(600):
        x = np.repeat(rng.normal(size=40), 5) + rng.normal(scale=0.5, size=200)
        for name, groups in (("clustered", clusters), ("plain", range(200))):
            interval = clustered_mean(x, groups)
            held[name] += interval.low <= 0 <= interval.high  # type: ignore[operator]
    assert 0.925 < held["clustered"] / 600 < 0.975
    assert held["plain"] / 600 < 0.75


def test_transformed_maps_the_ends_and_leaves_none() -> None:
    assert transformed(Estimate(0.0, -1.0, 1.0), math.exp) == pytest.approx((1.0, math.exp(-1), math.e))
    assert transformed(Estimate(0.0), math.exp) == Estimate(1.0)
