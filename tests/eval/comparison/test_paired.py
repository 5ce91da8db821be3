"""The statistics of a paired comparison: hand-computed cases, invariances, and error rates in simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from alignkit_eval.comparison.paired import effect, holm, judge, judge_draws, minus
from alignkit_eval.comparison.reference import Reference, over_seeds
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from tests.helpers.kinds import KINDS, Shape, coverage, rates
from tests.helpers.simulate import NULLS, covered, expected_power, family_wise_error, power, type_one_error

CLUSTERS = ["a", "a", "b", "c", "d"]


def difference(arm: list[list[float]], base: list[list[float]], clusters: list[str] = CLUSTERS):
    return judge(minus(effect(arm), effect(base)), clusters)


def test_one_seed_by_hand() -> None:
    # Differences 1, 1, 0, 0, -1 have the mean .2, and residual sums by cluster of 1.6, -.2, -.2, -1.2.
    found = difference([[1, 1, 1, 0, 0]], [[0, 0, 1, 0, 1]])
    assert found.diff == pytest.approx(0.2)
    # Sums 2, 0, 0, -1: |±2 ±1| >= 1 for all signs.
    assert found.p == 1.0
    # All 4 clusters must gain for p = 2/16, which is not below .05: nothing can be shown.
    assert (found.low, found.high, found.detectable, found.reachable) == (None, None, None, False)
    assert (found.n, found.clusters, found.seeds, found.test) == (5, 4, 1, "cluster sign-flip")


def test_the_interval_of_sign_flips_by_hand() -> None:
    # Six clusters: 2 of 64 flips are below 5 %, 4 are not. A difference is rejected until it exceeds the smallest cluster's.
    values = [3.0, 1.0, 2.0, 5.0, 4.0, 6.0]
    found = judge(effect([values]), list("abcdef"))
    assert (found.low, found.high, found.p) == (pytest.approx(1), pytest.approx(6), pytest.approx(2 / 64))
    # It is detected where all clusters gain: six normal numbers are all above -1.79 standard deviations with 80 %.
    error = np.std(values, ddof=1) / math.sqrt(6)
    shift = -float(stats.norm.ppf(1 - 0.8 ** (1 / 6))) * math.sqrt(6)
    assert found.detectable == pytest.approx(shift * error, rel=0.15)
    corrected = judge(effect([values]), list("abcdef"), tests=4)
    assert (corrected.detectable, corrected.reachable, corrected.p) == (None, False, found.p)
    eleven = judge(effect([values * 2]), list("abcdefghijkl"), tests=4)
    assert eleven.detectable > judge(effect([values * 2]), list("abcdefghijkl")).detectable


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=30), st.booleans())
def test_the_interval_leaves_out_zero_exactly_where_p_is_below_the_level(values: list[float], credits: bool) -> None:
    shifted = [float(v > 0) for v in values] if credits else [v + 1 for v in values]
    found = judge(effect([shifted]), [str(i) for i in range(len(values))], step=float(credits))
    outside = found.low is not None and found.high is not None and not found.low <= 0 <= found.high
    assert outside == (found.p is not None and found.p < 0.05)
    if found.low is not None and found.high is not None:
        assert found.low <= found.diff + 1e-9
        assert found.diff <= found.high + 1e-9


def test_two_questions() -> None:
    """Each seed gains a lot on all items, but one ten times the other: certain of these models, open for the method."""
    draw = np.random.default_rng(0)
    gains = np.array([[0.1], [1.0]]) + draw.normal(0, 0.05, size=(2, 60))
    found = judge(effect(gains), [str(i) for i in range(60)])
    assert found.p is not None
    assert found.p > 0.2
    assert found.models is not None
    assert (found.models.p, found.models.test) == (pytest.approx(1 / 20_001), "cluster sign-flip")
    assert found.models.low == pytest.approx(0.55, abs=0.05)
    assert found.seeds_needed is not None
    assert 4 < found.seeds_needed < 20
    assert judge(effect(gains[:1]), [str(i) for i in range(60)]).models is None
    noise = judge(effect(draw.normal(0, 1, size=(2, 8))), list("abcdefgh"))
    assert noise.seeds_needed is None, "more items are needed, whatever the number of seeds"


def test_equal_credits_do_not_prove_that_nothing_differs() -> None:
    """20 equal items: a difference of up to Wilson's bound for 0 of 20 can have been missed, and is in the interval."""
    equal = [1.0, 0.0] * 10
    found = judge(minus(effect([equal]), effect([equal])), [str(i) for i in range(20)], 0.03, step=1.0)
    bound = stats.norm.ppf(0.975) ** 2 / 20
    assert (found.low, found.high) == (pytest.approx(-bound / (1 + bound)), pytest.approx(bound / (1 + bound)))
    assert found.p_equivalent is not None
    assert found.p_equivalent > 0.05
    many = [1.0, 0.0] * 300
    shown = judge(minus(effect([many]), effect([many])), [str(i) for i in range(600)], 0.03, step=1.0)
    assert shown.p_equivalent is not None
    assert shown.p_equivalent < 0.05


def test_a_difference_keeps_to_what_is_possible() -> None:
    arm, base = [[1.0] * 8, [1.0] * 7 + [0.0]], [[0.0] * 8, [0.0] * 8]
    found = judge(minus(effect(arm), effect(base)), list("abcdefgh"), step=1.0, reach=1.0)
    assert found.high == 1.0


def test_sign_flips_by_hand() -> None:
    # Four clusters that all gain: only flipping none or all reaches the observed sum, 2 of 16.
    assert difference([[1, 1, 1, 1, 1]], [[0, 0, 0, 0, 0]]).p == pytest.approx(2 / 16)
    many = [str(i) for i in range(40)]
    drawn = difference([[1.0] * 40], [[0.0] * 40], many)
    assert drawn.p == pytest.approx(1 / 20_001), "no random flip reaches it: the smallest possible p"


def test_several_seeds_by_hand() -> None:
    arm, base = [[1, 1, 0, 1], [1, 0, 0, 1]], [[0, 1, 0, 0], [0, 0, 0, 0]]
    found = difference(arm, base, ["a", "b", "c", "d"])
    # Each seed gains .5. Item means of the difference: 1, 0, 0, 1, residuals +-.5.
    items = 4 / 3 * 4 * 0.25 / 16
    assert found.diff == 0.5
    assert found.p == pytest.approx(2 * stats.t.sf(0.5 / math.sqrt(items), 1)), "of the items' freedom 1 is left"
    arm[1] = [1, 1, 0, 0]  # now the gains are .5 and .5 by other items
    arm[0] = [1, 1, 1, 1]  # and .75
    found = difference(arm, base, ["a", "b", "c", "d"])
    gains = np.array([0.75, 0.5])
    seeds = gains.var(ddof=1) / 2
    means = np.array([1.0, 0.5, 0.5, 0.5])
    items = 4 / 3 * ((means - means.mean()) ** 2).sum() / 16
    assert found.p == pytest.approx(2 * stats.t.sf(gains.mean() / math.sqrt(items + seeds), 1))
    assert found.test == "t, one degree of freedom"


def test_ratio_equals_the_delta_method() -> None:
    draw = np.random.default_rng(1)
    tokens = draw.integers(3, 30, size=50).astype(float)
    a, b = (tokens * draw.uniform(1, 3, size=50) for _ in range(2))
    found = judge(minus(effect([a], [tokens]), effect([b], [tokens])), [str(i) for i in range(50)])
    # With one denominator for both, the difference of the ratios is the ratio of the differences.
    d = a - b
    ratio = d.sum() / tokens.sum()
    error = math.sqrt(50 / 49 * ((d - ratio * tokens) ** 2).sum()) / tokens.sum()
    assert found.diff == pytest.approx(ratio)
    assert found.high == pytest.approx(ratio + stats.t.ppf(0.975, 49) * error, rel=0.05), "nearly that of t"


def test_with_denominators_of_one_it_is_a_mean() -> None:
    values = np.random.default_rng(0).normal(size=(3, 20))
    clusters = [str(i % 6) for i in range(20)]
    assert judge(effect(values), clusters) == judge(effect(values, np.ones_like(values)), clusters)


def test_order_of_items_and_swap_of_arms() -> None:
    draw = np.random.default_rng(2)
    arm, base = draw.normal(size=(2, 3, 30))
    clusters = [str(i) for i in draw.integers(0, 9, size=30)]
    found = judge(minus(effect(arm), effect(base)), clusters)
    order = draw.permutation(30)
    moved = judge(minus(effect(arm[:, order]), effect(base[:, order])), [clusters[i] for i in order])
    assert moved[:5] == pytest.approx(found[:5])
    swapped = judge(minus(effect(base), effect(arm)), clusters)
    assert (swapped.diff, swapped.low, swapped.high) == pytest.approx((-found.diff, -found.high, -found.low))
    assert swapped.p == pytest.approx(found.p)


@pytest.mark.parametrize("seeds", [1, 3])
def test_nothing_to_judge_by(seeds: int) -> None:
    ties = difference([[1, 0, 1, 0, 1]] * seeds, [[1, 0, 1, 0, 1]] * seeds)
    assert (ties.diff, ties.low, ties.high, ties.p, ties.detectable) == (0, 0, 0, 1, None)
    one_cluster = difference([[1, 0, 1, 0, 1]] * seeds, [[0] * 5] * seeds, ["a"] * 5)
    assert one_cluster[1:5] == (None, None, None, None)
    one_item = difference([[1]] * seeds, [[0]] * seeds, ["a"])
    assert (one_item.diff, one_item.p) == (1, None)
    # The same gain everywhere has no spread for an interval; p comes from the sign flips of 4 clusters.
    same_gain = difference([[1] * 5] * seeds, [[0] * 5] * seeds)
    assert (same_gain.diff, same_gain.low, same_gain.test) == (1, None, "cluster sign-flip")
    assert same_gain.p == pytest.approx(2 / 16)


@pytest.mark.parametrize(
    ("numerators", "denominators", "message"),
    [
        ([[]], None, "shape"),
        ([1.0], None, "shape"),
        ([[1.0, math.nan]], None, "finite"),
        ([[1.0]], [[0.0]], "positive"),
    ],
)
def test_what_cannot_be_compared(numerators: object, denominators: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        effect(numerators, denominators)  # type: ignore[arg-type]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([None, 0.5, 0.6]) == [None, 1.0, 1.0]
    assert holm([]) == []


def test_few_seeds_do_not_lend_the_freedom_of_many_items() -> None:
    # Two seeds agree exactly by chance: V_seeds is 0, and Satterthwaite would give 199 degrees of freedom.
    draw = np.random.default_rng(4)
    values = np.tile(draw.normal(0.1, 1, size=200), (2, 1))
    found = judge(effect(values), [str(i) for i in range(200)])
    error = values[0].std(ddof=1) / math.sqrt(200)
    assert found.high == pytest.approx(values.mean() + stats.t.ppf(0.975, 1) * error)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(values.mean()) / error, 1))


@pytest.mark.parametrize("clusters", [6, 200])
@pytest.mark.parametrize("seeds", [2, 3, 4, 5, 8])
def test_seeds_that_vary_much_or_little_reject_a_true_null_as_often_as_is_documented(seeds: int, clusters: int) -> None:
    """Drawn variances in place of items, for many ratios of the seeds' variance to that of the items."""
    draw, trials, limit = np.random.default_rng(seeds), 40_000, 0.05
    for ratio in (0.0, 1.0, 4.0, 10.0, 30.0, 100.0, 300.0, 1000.0):
        items = draw.chisquare(clusters - 1, trials) / (clusters - 1)
        drawn = ratio * draw.chisquare(seeds - 1, trials) / (seeds - 1)
        t = draw.normal(0, math.sqrt(1 + ratio), trials) / np.sqrt(items + drawn)
        parts = over_seeds(items, drawn, seeds, clusters).parts
        largest = np.sqrt(sum(share * special.stdtrit(freedom, 0.975) ** 2 for share, freedom in parts))
        rejected = np.mean(abs(t) > largest)
        assert rejected < limit + 3 * math.sqrt(0.06 * 0.94 / trials), ratio


@pytest.mark.parametrize(
    ("seeds", "arms", "ratio"),
    [(2, 2, 30.0), (2, 6, 1_000.0), (2, 42, 10_000.0), (3, 6, 10.0), (3, 42, 10.0), (3, 42, 50.0), (5, 42, 10.0)],
)
def test_equal_arms_rarely_show_a_difference_after_the_correction(seeds: int, arms: int, ratio: float) -> None:
    trials = 24_000 // arms
    assert family_wise_error(trials, arms=arms, ratio=ratio, seeds=seeds) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


@given(st.floats(0.0, 1.0), st.integers(1, 12), st.integers(1, 400), st.floats(-30, 30))
def test_p_is_that_of_the_quantile(share: float, seeds: int, items: int, x: float) -> None:
    reference = Reference(((share, float(items)), (1 - share, float(seeds))))
    tail = reference.tail(x)
    assert tail + reference.tail(-x) == pytest.approx(1)
    assert -reference.quantile(reference.tail(abs(x))) == pytest.approx(abs(x), rel=1e-6, abs=1e-9)
    assert Reference(((share, 7.0), (1 - share, 7.0))).tail(x) == pytest.approx(stats.t.sf(x, 7), rel=1e-6)
    least, most = sorted(stats.t.sf(abs(x), freedom) for freedom in (items, seeds))
    assert least * (1 - 1e-6) <= reference.tail(abs(x)) <= most * (1 + 1e-6)


def test_three_seeds_by_hand() -> None:
    arm = [[1.0, 1, 0, 1, 1], [1, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    found = difference(arm, [[0.0] * 5] * 3, list("abcde"))
    gains, means = np.array([0.8, 0.6, 1.0]), np.array([1, 2 / 3, 1 / 3, 1, 1])
    items, seeds = 5 / 4 * ((means - 0.8) ** 2).sum() / 25, gains.var(ddof=1) / 3
    half = math.sqrt(items * stats.t.ppf(0.975, 4) ** 2 + seeds * stats.t.ppf(0.975, 2) ** 2)
    assert found.test == "t, Banerjee"
    assert found.low == pytest.approx(0.8 - half)
    assert found.high == pytest.approx(0.8 + half)
    at = math.sqrt(stats.t.isf(found.p / 2, 4) ** 2 * items + stats.t.isf(found.p / 2, 2) ** 2 * seeds)
    assert at == pytest.approx(0.8)


def test_random_flips_agree_with_all_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(6).normal(0.4, 1, size=(1, 12))
    clusters = [str(i) for i in range(12)]
    exact = judge(effect(values), clusters).p
    monkeypatch.setattr("alignkit_eval.comparison.flips.EXACT", 0)
    monkeypatch.setattr("alignkit_eval.comparison.flips._BLOCK", 1000)  # several blocks
    drawn = judge(effect(values), clusters).p
    assert exact is not None
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))


@pytest.mark.parametrize("about", NULLS.values(), ids=NULLS)
def test_type_one_error(about: dict[str, float]) -> None:
    """A short form of the acceptance run, with a tenth of its trials: 400 give a standard error of 1.1 %."""
    assert type_one_error(400, clusters=100, **about) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_power_is_what_theory_says() -> None:
    found = power(300, shift=0.1, seeds=1, clusters=400, per_cluster=1)
    assert found == pytest.approx(expected_power(400, 0.1), abs=0.07)


def test_intervals_cover() -> None:
    assert covered(300, 0.05, seeds=3, cluster_sd=0.1, seed_sd=0.03) > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 300)


def test_a_statistic_that_is_no_mean_is_compared_on_the_same_draws() -> None:
    """A median of 60 numbers and of the same ones, moved by 0.3: with the same draws, the difference is certain."""
    draw = np.random.default_rng(0)
    values = draw.normal(size=60)
    which = draw.integers(60, size=(200, 60))
    base, arm = (np.median(v[which], axis=1)[None] for v in (values, values + 0.3 + draw.normal(0, 0.05, size=60)))
    found = judge_draws(np.array([0.3]), arm - base, 60, 60, margin=0.5)
    assert found.p is not None
    assert found.p < 1e-6
    assert found.low is not None
    assert 0.2 < found.low < 0.3
    assert found.test == "t, cluster bootstrap"
    assert found.p_equivalent is not None
    assert found.p_equivalent < 0.01
    apart = judge_draws(np.array([0.3]), arm - base[:, ::-1], 60, 60)
    assert apart.low is not None
    assert apart.low < 0, "with draws of their own, it is not"
    assert judge_draws(np.array([0.3]), arm - base, 60, 1).p is None
    assert judge_draws(np.array([0.1, 0.5]), np.tile(arm - base, (2, 1)), 60, 60).models is not None


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_and_tests_of_every_kind_of_metric(kind: str) -> None:
    """A short form of the acceptance run, which has all sizes and more trials."""
    shape = Shape(50, clustered=True)
    found = rates(kind, shape, "models", 40)
    assert found.coverage > 0.82
    assert found.type_one < 0.16
    assert found.equivalence < 0.16
    assert 0.88 < coverage(kind, shape, 150) <= 1


def test_a_clear_difference_is_significant_among_many_tests_too() -> None:
    """20,000 flips alone have no p below 5e-5, which 1,260 tests correct to 0.06."""
    gains = np.random.default_rng(0).normal(0.5, 1, size=(1, 130))
    one, many = (judge(effect(gains), range(130), tests=tests) for tests in (1, 1260))
    assert one.p is not None
    assert many.p is not None
    assert one.p >= 1 / 20_001
    assert many.p * 1260 < 0.05
    assert many.reachable
    assert (one.low, one.high) == (many.low, many.high)
    exact = float(stats.ttest_1samp(gains[0], 0).pvalue)
    assert exact * 1260 < 0.01
    null = np.random.default_rng(1).normal(size=(1, 130))
    assert judge(effect(null), range(130), tests=1260).p == judge(effect(null), range(130)).p
