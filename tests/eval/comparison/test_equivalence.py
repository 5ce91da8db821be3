"""Equivalence within a margin, letters of groups, guards, and conditions for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignkit.errors import ConfigError
from alignkit_eval.comparison.compare import compare
from alignkit_eval.comparison.letters import letters_of
from alignkit_eval.comparison.paired import effect, judge, judge_draws
from alignkit_eval.comparison.require import Requirement
from alignkit_eval.comparison.result import ContrastResult
from alignkit_eval.comparison.verdict import Judged, verdict_of
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.helpers.runs import align

pytestmark = pytest.mark.slow


def contrast(
    arm: str = "B", metric: str = "accuracy_sum", diff: float = 0.0, p: float = 0.6, **more: Any
) -> ContrastResult:
    about = {"p": p, "p_holm": p, "n": 100, "clusters": 50, "seeds": 3, "higher_is_better": True, "test": "t"}
    return ContrastResult(arm, "prefs", metric, diff, diff - 0.02, diff + 0.02, detectable=0.04, **(about | more))  # type: ignore[arg-type]


def test_two_one_sided_tests_are_scipys() -> None:
    """For statistics that are no means, by t: each test at 2.5 %, as each side of the difference test."""
    draw = np.random.default_rng(3)
    values = draw.normal(0.01, 0.1, size=30)
    draws = np.tile(values, 2)  # only their variance counts
    scaled = (draws - draws.mean()) / draws.std(ddof=1) * stats.sem(values)
    found = judge_draws(np.array([values.mean()]), scaled[None], 30, 30, margin=0.05)
    lower = stats.ttest_1samp(values, -0.05, alternative="greater").pvalue
    upper = stats.ttest_1samp(values, 0.05, alternative="less").pvalue
    assert found.p_equivalent == pytest.approx(2 * max(lower, upper), abs=1e-12)
    flipped = judge(effect([values]), [str(i) for i in range(30)], margin=0.05).p_equivalent
    assert flipped == pytest.approx(found.p_equivalent, rel=0.2), "nearly that of sign flips"
    assert judge(effect([values]), [str(i) for i in range(30)]).p_equivalent is None


def test_equivalence_of_sign_flips_by_hand() -> None:
    """Six clusters: all are below the margin of 6.5 and above -6.5, which 2 of 64 flips reach; 6 is not outside of all."""
    values = [[3.0, 1.0, 2.0, 5.0, 4.0, 6.0]]
    assert judge(effect(values), list("abcdef"), margin=6.5).p_equivalent == pytest.approx(2 / 64)
    assert judge(effect(values), list("abcdef"), margin=5.9).p_equivalent == pytest.approx(4 / 64)
    assert judge(effect(values), list("abcdef"), margin=3.0).p_equivalent == 1
    five = judge(effect([[0.1, 0.0, 0.2, 0.1, 0.0]]), list("abcde"), margin=9.0)
    assert (five.low, five.high, five.p_equivalent) == (None, None, 2 / 32), "five clusters can show nothing"


@given(
    st.lists(st.lists(st.floats(-3, 3), min_size=30, max_size=30), min_size=1, max_size=3),
    st.integers(3, 30),
    st.sampled_from(["values", "credits", "draws"]),
    st.floats(0.01, 0.99),
)
def test_equivalence_is_shown_exactly_where_the_interval_lies_inside_the_margin(
    seeds: list[list[float]], items: int, kind: str, margin: float
) -> None:
    """Whatever the test behind the interval: what is said agrees with what is shown."""
    values = np.array(seeds)[:, :items] / 8
    step = 1.0 if kind == "credits" else 0.0
    if step:
        values = np.sign(np.round(values, 1))
    clusters = [str(i) for i in range(items)]
    if kind == "draws":
        answers: list[Any] = [judge_draws(values.mean(1), values, items, items, margin)]
    else:
        answers = [judge(effect(values), clusters, margin, step=step, reach=2.0)]
    answers += [answers[0].models] * (answers[0].models is not None)
    for found in answers:
        if found.low is None or found.high is None:
            assert answers[0].diff == 0 or found.p_equivalent in (0, 1) or found.p_equivalent >= 0.05
            continue
        near = min(abs(found.low + margin), abs(found.high - margin)) < 1e-9
        assert near or (found.p_equivalent < 0.05) == (-margin < found.low and found.high < margin)


def test_equal_arms_are_equivalent_and_one_cluster_shows_nothing() -> None:
    assert judge(effect([[0.0, 0.0]]), ["a", "b"], margin=0.01).p_equivalent == 0
    assert judge(effect([[0.2, 0.2]]), ["a", "b"], margin=0.01).p_equivalent == 1
    assert judge(effect([[0.0, 0.0]]), ["a", "a"], margin=0.01).p_equivalent is None


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_difference_of_the_margin_is_called_equivalent_in_at_most_five_percent(seeds: int) -> None:
    draw, trials, margin = np.random.default_rng(seeds), 1500, 0.03
    wrong = 0
    for _ in range(trials):
        clusters = np.repeat(np.arange(40), 3)
        effects = draw.normal(0, 0.05, size=40)[clusters] + draw.normal(0, 0.005, size=(seeds, 1))
        values = margin + effects + draw.normal(0, 0.1, size=(seeds, 120))
        p = judge(effect(values), list(map(str, clusters)), margin).p_equivalent
        assert p is not None
        wrong += p < 0.05
    assert wrong / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


@given(
    st.integers(2, 7).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.sampled_from(list(combinations(range(n), 2)))))
    )
)
def test_letters_are_shared_exactly_by_those_that_cannot_be_told_apart(drawn: tuple[int, set[tuple[int, int]]]) -> None:
    count, different = drawn
    arms = [f"arm {i}" for i in range(count)]
    pairs = [
        Judged(arms[i], contrast(arms[j], diff=0.1, p=0.01 if (i, j) in different else 0.5))
        for i, j in combinations(range(count), 2)
    ]
    letters = letters_of(arms, pairs)
    for i, j in combinations(range(count), 2):
        assert bool(set(letters[arms[i]]) & set(letters[arms[j]])) == ((i, j) not in different)
    assert all(letters.values())


def test_metrics_that_disagree_tell_nothing_apart() -> None:
    pairs = [Judged("A", contrast(diff=0.1, p=0.01)), Judged("A", contrast(metric="accuracy_mean", diff=-0.1, p=0.01))]
    assert letters_of(["A", "B"], pairs) == {"A": "a", "B": "a"}
    assert letters_of(["A", "B"], []) == {}


def sentence(contrasts: Sequence[ContrastResult]) -> str:
    return verdict_of("A", ["A", "B"], contrasts, [Judged("A", c) for c in contrasts if not c.guard])[0]


def test_the_verdict_names_equivalence_and_the_price() -> None:
    same = {"margin": 0.03, "p_equivalent": 0.001, "p_equivalent_holm": 0.002}
    both = [contrast(**same), contrast(metric="accuracy_mean", **same)]
    assert sentence(both).startswith("B and A are equivalent (accuracy sum +0.000, margin 0.03, p 0.002; accuracy mean")
    half = [contrast(**same), contrast(metric="accuracy_mean", margin=0.03, p_equivalent_holm=0.3)]
    assert "do not differ significantly" in sentence(half)
    assert "; equivalent by accuracy sum +0.000, margin 0.03, p 0.002)" in sentence(half)
    better = [contrast(diff=0.1, p=0.01), contrast(metric="accuracy_mean", diff=0.1, p=0.01)]
    worse = contrast(metric="perplexity", diff=3.0, p=0.001, higher_is_better=False, guard=True)
    kl = contrast(metric="kl", guard=True, **same)
    said = sentence([*better, worse, kl, contrast(metric="x", guard=True)])
    assert said.startswith("B is ahead of A in the objective (accuracy sum")
    assert "), but worse by perplexity: no winner." in said
    assert (
        "Of B, perplexity is worse (perplexity +3.000 [+2.980, +3.020], p 0.001), kl is equivalent (kl +0.000" in said
    )
    assert said.endswith("x is undecided (x +0.000 [-0.020, +0.020], p 0.600).")


def test_a_significant_difference_within_the_margin_is_a_difference() -> None:
    small = contrast(diff=0.01, p=0.001, margin=0.03, p_equivalent_holm=0.001)
    assert (small.outcome, small.within_margin) == ("better", True)


@pytest.mark.parametrize(
    "text", ["accuracy_sum", "accuracy_sum>0.1", ">=0.1", "accuracy_sum>=a", "accuracy_sum>=1.2.3"]
)
def test_a_condition_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write METRIC>=NUMBER"):
        Requirement.parse(text)


def test_of_real_runs(grid: dict[str, Path], edited: Callable[..., Path], tmp_path: Path) -> None:
    same = edited(
        "l0-s0", "run.json", lambda record: record | {"config": record["config"] | {"model": {"name": "other"}}}
    )
    found = compare([grid["l0-s0"], same], margins={"accuracy_sum": 0.2})
    by_metric = {c.metric: c for c in found.contrasts}
    assert by_metric["accuracy_sum"].outcome == "equivalent"
    assert by_metric["perplexity"].guard
    assert set(found.letters.values()) == {"a"}
    assert [pair.baseline for pair in found.pairs] == [found.baseline] * 2
    with pytest.raises(ConfigError, match=r"margin of accuracy_sun: these runs have no such metric, did you mean"):
        compare([grid["l0-s0"], same], margins={"accuracy_sun": 0.1})

    compared = partial(align, "compare", str(grid["l0-s0"]), str(same), cwd=tmp_path)
    passed = compared("--require", "accuracy_sum>=-0.2", "--require", "perplexity<=0.1", "--all-pairs")
    assert passed.returncode == 0, passed.stderr
    assert "All pairs" in passed.stdout
    assert "equivalent" in passed.stdout
    refused = compared("--require", "accuracy_sum>=0.01", "--json", "--margin", "accuracy_sum=0.02")
    assert refused.returncode == 3
    assert "not shown: accuracy_sum>=0.01 of " in refused.stderr
    assert json.loads(refused.stdout)["pairs"][0]["margin"] == 0.02
    unknown = compared("--require", "acuracy_sum>=0")
    assert unknown.returncode == 2
    assert "no metric acuracy_sum, did you mean" in unknown.stderr
