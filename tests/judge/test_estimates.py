"""The statistics of a judge: closed forms, and the coverage of intervals for the true win rate in simulated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from alignkit_eval.statistics import clustered_mean
from alignkit_judge import corrected_win_rate, length_controlled, rated_win_rate
from alignkit_judge.estimates import UncorrectableError, Verdicts, bounded
from scipy import stats

from tests.helpers.judges import Biases, coverage

BIASED = Biases(skill=1.2, position=0.8, length=0.8)


def verdicts(credits: list[float], longer: list[float] | None = None, start: int = 0) -> Verdicts:
    found = np.array(credits, float)
    lengths = np.zeros(len(found)) if longer is None else np.array(longer, float)
    return Verdicts(found, lengths, range(start, start + len(found)))


def test_without_lengths_it_is_rogan_and_gladen_s() -> None:
    """(p + q - 1) / (2 q - 1) for an accuracy q, with the variance of both samples by the delta method."""
    compared, known = [1.0] * 60 + [0.0] * 40, [1.0] * 80 + [0.0] * 20
    found = corrected_win_rate(verdicts(compared), verdicts(known, start=100))
    p, q = 0.6, 0.8
    theta = (p + q - 1) / (2 * q - 1)
    assert found.value == pytest.approx(theta)
    # d theta / d p = 1 / (2 q - 1), d theta / d q = (1 - 2 p) / (2 q - 1)^2; C / (C - 1) over both samples
    variance = p * (1 - p) / 100 / (2 * q - 1) ** 2 + q * (1 - q) / 100 * ((1 - 2 * p) / (2 * q - 1) ** 2) ** 2
    half = stats.t.ppf(0.975, 99) * math.sqrt(variance * 200 / 199)
    assert (found.low, found.high) == pytest.approx((theta - half, theta + half))


def test_a_perfect_judge_is_not_corrected() -> None:
    found = corrected_win_rate(verdicts([1.0] * 7 + [0.0] * 3), verdicts([1.0] * 20, start=10))
    expected = clustered_mean([1.0] * 7 + [0.0] * 3, range(10))
    assert found.value == pytest.approx(0.7)
    assert found.low == pytest.approx(expected.low, abs=0.02)


def test_the_bias_for_longer_answers_is_taken_out() -> None:
    """A judge that is right on the longer of 90 % and on the shorter of 60 %, over a target that is always longer."""
    share = 0.7  # of answers that are better; a longer worse answer is preferred with probability 0.4
    compared = verdicts([share * 0.9 + (1 - share) * 0.4] * 50, [0.5] * 50)
    known = verdicts([0.9] * 100 + [0.6] * 100, [0.5] * 100 + [-0.5] * 100, start=50)
    assert corrected_win_rate(compared, known).value == pytest.approx(share)
    assert corrected_win_rate(compared, known._replace(longer=np.zeros(200))).value > share + 0.05


@pytest.mark.parametrize("known", [[1.0] * 52 + [0.0] * 48, [0.5] * 100, [0.0] * 100, [1.0], []])
def test_a_judge_that_is_not_shown_to_be_better_than_chance_corrects_nothing(known: list[float]) -> None:
    with pytest.raises(UncorrectableError):
        corrected_win_rate(verdicts([1.0] * 60 + [0.0] * 40), verdicts(known, start=100))


def test_shared_clusters_of_both_samples_are_one() -> None:
    """The same prompts in the comparison and the calibration: their errors do not cancel or add by chance."""
    draw = np.random.default_rng(0)
    own, known = verdicts(list(draw.integers(0, 2, 90))), verdicts([1.0] * 75 + [0.0] * 15)
    apart = corrected_win_rate(own, known._replace(clusters=range(90, 180)))
    together = corrected_win_rate(own, known)
    assert apart.value == together.value
    assert apart.low != pytest.approx(together.low, abs=1e-6)


def test_ratings_of_all_items_are_their_mean_and_of_some_of_them_shrink_the_interval() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, 400).astype(float)
    good = verdicts(list(np.where(draw.random(400) < 0.95, truth, 1 - truth)))
    everything = rated_win_rate(good, list(truth))
    plain = clustered_mean(truth, range(400))
    assert everything == pytest.approx(plain)
    some = [value if i < 100 else None for i, value in enumerate(truth)]
    useless = good._replace(credits=draw.integers(0, 2, 400).astype(float))
    widths = [e.high - e.low for e in (rated_win_rate(good, some), rated_win_rate(useless, some))]  # type: ignore[operator]
    assert widths[0] < 0.75 * widths[1]


def test_equal_answers_are_ties_that_nobody_rates() -> None:
    found = rated_win_rate(verdicts([0.5] * 10 + [1.0] * 10), [None] * 10 + [1.0] * 10, [True] * 10 + [False] * 10)
    assert found.value == pytest.approx(0.75)


def test_length_controlled_is_the_logistic_intercept() -> None:
    longer = [-1.0, -1.0, 1.0, 1.0] * 100
    even = length_controlled(verdicts([0.0, 0.0, 1.0, 1.0] * 100, longer))
    assert even.value == pytest.approx(0.5, abs=1e-6)  # length explains everything
    plain = length_controlled(verdicts([1.0, 0.0, 1.0, 1.0] * 100, [0.0] * 400))
    assert plain.value == pytest.approx(0.75, abs=0.002)
    always = length_controlled(verdicts([1.0] * 30))
    assert 0.8 < always.value < 1
    # Swapping the two answers mirrors the estimate.
    draw = np.random.default_rng(1)
    one = verdicts(list(draw.integers(0, 2, 200)), list(draw.normal(0.3, 1, 200)))
    other = Verdicts(1 - one.credits, -one.longer, one.clusters)
    assert length_controlled(one).value == pytest.approx(1 - length_controlled(other).value)


def test_bounded_lengths() -> None:
    assert bounded([0, 5, -5], 5.0).tolist() == pytest.approx([0, math.tanh(1), -math.tanh(1)])
    assert bounded([0, 0], 0.0).tolist() == [0, 0]


def test_coverage_in_the_demo_world() -> None:
    """200 experiments: position and length bias are corrected; a preference for the target's own style is not."""
    found = coverage(200, BIASED)
    assert found["raw"] < 0.5
    assert 0.91 <= found["corrected"] <= 0.99
    assert 0.91 <= found["rated"] <= 0.99
    partial = coverage(200, BIASED._replace(own=1.2))
    assert partial["corrected"] < 0.5
    assert 0.91 <= partial["rated"] <= 0.99
