"""The preference suite against hand-computed cases and against a plain forward pass."""

import math
import random
from dataclasses import replace

import pytest
import torch
from alignkit import Estimate, Example, Suite, SuiteResult, Target
from alignkit.errors import AlignError, DataError, RunFailedError
from alignkit.scoring.policy import ModelPolicy
from alignkit.scoring.scorer import install
from alignkit_eval.suites.prefs import PreferenceSettings, PreferenceSuite, credit, expected_calibration_error
from pydantic import ValidationError

from tests.helpers.eval import ReferencePolicy, TablePolicy, pair, random_pairs, target, tiny_model, token_logps

ITEM_KEYS = [
    "id",
    "cluster",
    "category",
    "chosen_sum",
    "rejected_sum",
    "chosen_tokens",
    "rejected_tokens",
    "credit_sum",
    "credit_mean",
    "margin_sum",
    "margin_mean",
]


def evaluate(where: Target, **settings: int) -> SuiteResult:
    return PreferenceSuite(PreferenceSettings(**settings)).evaluate(where)


def numbers(estimate: Estimate) -> list[float]:
    return [x for x in estimate if x is not None]


@pytest.fixture
def by_hand() -> tuple[list[Example], TablePolicy]:
    """Four pairs: a win both ways, sum and mean at odds, an exact tie, a loss both ways."""
    examples = [
        pair("win", 2, 2, cluster="a", category="tone"),
        pair("odds", 4, 2, cluster="a", category="sums"),
        pair("tie", 1, 1, cluster="b", category="sums"),
        pair("loss", 1, 2, cluster="c", category="tone"),
    ]
    table = {
        ("win", 0): [-0.25, -0.25],  # sum -.5, mean -.25
        ("win", 1): [-1.0, -0.5],  # -1.5, -.75: margins 1, .5
        ("odds", 0): [-0.5] * 4,  # -2, -.5
        ("odds", 1): [-0.75, -0.75],  # -1.5, -.75: margins -.5, .25
        ("tie", 0): [-1.0],
        ("tie", 1): [-1.0],
        ("loss", 0): [-3.0],  # -3, -3
        ("loss", 1): [-0.5, -0.5],  # -1, -.5: margins -2, -2.5
    }
    return examples, TablePolicy(table)


def test_metrics_by_hand(by_hand: tuple[list[Example], TablePolicy]) -> None:
    examples, policy = by_hand
    result = evaluate(target(policy, examples))
    values = {name: estimate.value for name, estimate in result.metrics.items()}
    p = [1 / (1 + math.exp(-m)) for m in (1, -0.5, 0, -2)]
    assert values == pytest.approx(
        {
            "accuracy_sum": (1 + 0 + 0.5 + 0) / 4,
            "accuracy_mean": (1 + 1 + 0.5 + 0) / 4,
            "accuracy_length": (0.5 + 1 + 0.5 + 0) / 4,
            "margin_sum": (1 - 0.5 + 0 - 2) / 4,
            "margin_mean": (0.5 + 0.25 + 0 - 2.5) / 4,
            "logp_chosen": (-0.25 - 0.5 - 1 - 3) / 4,
            "logp_rejected": (-0.75 - 0.75 - 1 - 0.5) / 4,
            "brier": sum((1 - q) ** 2 for q in p) / 4,
            # Ten bins over confidence .5 to 1: the tie (.5, right by half), odds (.62, wrong), win (.73, right) and
            # loss (.88, wrong) are each in a bin of their own.
            "ece": (0 + (1 - p[1]) + (1 - p[0]) + (1 - p[3])) / 4,
            "accuracy_sum/shorter": 0.0,
            "accuracy_sum/same": 0.75,
            "accuracy_sum/longer": 0.0,
            "accuracy_sum/category/sums": 0.25,
            "accuracy_sum/category/tone": 0.5,
        }
    )
    assert (result.suite, result.n, result.clusters) == ("prefs", 4, 3)
    assert result.settings == {"tokens_per_batch": 16384, "calibration_bins": 10}


def test_items_carry_exactly_the_agreed_keys(by_hand: tuple[list[Example], TablePolicy]) -> None:
    examples, policy = by_hand
    result = evaluate(target(policy, examples))
    assert [list(item) for item in result.items] == [ITEM_KEYS] * 4
    assert result.items[1] == {
        "id": "odds",
        "cluster": "a",
        "category": "sums",
        "chosen_sum": -2.0,
        "rejected_sum": -1.5,
        "chosen_tokens": 4,
        "rejected_tokens": 2,
        "credit_sum": 0.0,
        "credit_mean": 1.0,
        "margin_sum": -0.5,  # sums -2 and -1.5
        "margin_mean": 0.25,  # -2 / 4 and -1.5 / 2 per token
    }


def test_accuracy_against_the_start_model(by_hand: tuple[list[Example], TablePolicy]) -> None:
    examples, policy = by_hand
    start = evaluate(target(policy, examples))
    # The margins grow by .5 on "win" and shrink by 1 on "tie"; the others stay.
    moved = dict(policy.table) | {("win", 0): [0.0, 0.0], ("tie", 0): [-2.0]}
    result = evaluate(target(TablePolicy(moved), examples[::-1], start))
    assert {item["id"]: item["credit_ref"] for item in result.items} == {"win": 1, "odds": 0.5, "tie": 0, "loss": 0.5}
    assert result.metrics["accuracy_ref"].value == 0.5
    assert result.metrics["margin_ref"].value == pytest.approx((0.5 - 1) / 4)
    assert [list(item) for item in result.items] == [[*ITEM_KEYS, "credit_ref"]] * 4


def test_a_start_model_scored_on_other_pairs_is_refused(by_hand: tuple[list[Example], TablePolicy]) -> None:
    examples, policy = by_hand
    start = evaluate(target(policy, examples[1:]))
    with pytest.raises(RunFailedError, match=r"not evaluated on 1 of the held-out pairs \(first: win\)"):
        evaluate(target(policy, examples, start))
    twice = replace(start, items=[*start.items, start.items[0]])
    with pytest.raises(RunFailedError, match="duplicate id 'odds'"):
        evaluate(target(policy, examples, twice))


def test_scores_are_those_of_a_plain_forward() -> None:
    model, examples = tiny_model(), random_pairs(6)
    result = evaluate(target(ReferencePolicy(model), examples))
    for example, item in zip(examples, result.items, strict=True):
        for name, completion in zip(("chosen", "rejected"), example.completions, strict=True):
            logps = token_logps(model, list(example.prompt), list(completion))
            assert item[f"{name}_sum"] == pytest.approx(logps.double().sum().item(), rel=1e-9)
            assert item[f"{name}_tokens"] == len(completion)


@pytest.mark.parametrize("backend", ["auto", "padded"])
def test_the_engines_policy_gives_the_same_result(backend: str) -> None:
    model, examples = tiny_model(), random_pairs(20)
    expected = evaluate(target(ReferencePolicy(model), examples))
    policy = ModelPolicy(model, install(model, backend))  # type: ignore[arg-type]
    result = evaluate(target(policy, examples), tokens_per_batch=100)
    for got, item in zip(result.items, expected.items, strict=True):
        assert got == pytest.approx(item, abs=1e-4)
    for name, estimate in expected.metrics.items():
        assert numbers(result.metrics[name]) == pytest.approx(numbers(estimate), abs=1e-4)


def test_neither_order_nor_batches_change_anything() -> None:
    model, examples = tiny_model(), random_pairs(20)
    expected = evaluate(target(ReferencePolicy(model), examples))
    shuffled = random.Random(3).sample(examples, len(examples))
    for rows, tokens in ((shuffled, 16384), (examples, 1), (shuffled, 60)):
        result = evaluate(target(ReferencePolicy(model), rows), tokens_per_batch=tokens)
        assert [item["id"] for item in result.items] == [example.id for example in rows]
        assert {item["id"]: item for item in result.items} == {item["id"]: item for item in expected.items}
        for name, estimate in expected.metrics.items():
            got = result.metrics[name]
            assert (got.low is None) == (estimate.low is None)
            assert numbers(got) == pytest.approx(numbers(estimate), rel=1e-9)


def test_batches_are_bounded_and_longest_first() -> None:
    policy, examples = ReferencePolicy(tiny_model()), random_pairs(20)
    evaluate(target(policy, examples), tokens_per_batch=80)
    assert len(policy.calls) > 1
    assert max(policy.calls) <= 80
    assert sum(policy.calls) == sum(example.tokens for example in examples)
    singles = ReferencePolicy(policy.model)
    evaluate(target(singles, examples), tokens_per_batch=1)
    assert singles.calls == sorted(singles.calls, reverse=True)


def test_only_scored_tokens_count() -> None:
    model = tiny_model()
    masked = Example("m", [256, 1], ([5, 6, 7], [8, 9]), masks=([True, False, True], None))
    item = evaluate(target(ReferencePolicy(model), [masked])).items[0]
    logps = token_logps(model, [256, 1], [5, 6, 7])
    assert item["chosen_tokens"] == 2
    assert item["chosen_sum"] == pytest.approx(logps[[0, 2]].double().sum().item(), rel=1e-9)


@pytest.mark.parametrize("poison", [math.nan, -math.inf])
def test_a_score_that_is_not_finite_fails_and_names_the_rows(poison: float) -> None:
    examples = [pair(f"row-{i}") for i in range(9)]
    table = {(e.id, k): [-1.0] for e in examples for k in (0, 1)}
    with pytest.raises(RunFailedError, match=r"not finite on 1 of 9 rows \(row-4\)"):
        evaluate(target(TablePolicy(table | {("row-4", 1): [poison]}), examples))


def test_a_broken_model_fails_instead_of_getting_an_accuracy() -> None:
    model = tiny_model()
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(RunFailedError, match=r"8 of 8 rows \(row-0, row-1, row-2, row-3, row-4, \.\.\.\)") as caught:
        evaluate(target(ReferencePolicy(model), random_pairs(8)))
    assert caught.value.exit_code == 1


def test_no_rows_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match="--eval-data"):
        evaluate(target(TablePolicy({}), []))


def test_a_single_pair_has_values_and_no_intervals() -> None:
    result = evaluate(target(TablePolicy({("x", 0): [-1.0], ("x", 1): [-2.0]}), [pair("x")]))
    assert result.metrics["accuracy_sum"] == (1.0, None, None)
    assert all(estimate.low is estimate.high is None for estimate in result.metrics.values())


def test_pairs_without_a_cluster_are_clustered_by_prompt() -> None:
    rows = [replace(pair(f"row-{i}"), prompt=[256, i // 2]) for i in range(6)]
    table = {(e.id, k): [-1.0 - k] for e in rows for k in (0, 1)}
    result = evaluate(target(TablePolicy(table), rows))
    names = [item["cluster"] for item in result.items]
    assert result.clusters == 3
    assert names[0] == names[1] != names[2]


def test_margins_have_clustered_intervals_around_them() -> None:
    result = evaluate(target(ReferencePolicy(tiny_model()), random_pairs(20)))
    for name in ("accuracy_sum", "accuracy_mean", "margin_sum", "margin_mean"):
        value, low, high = result.metrics[name]
        assert low is not None
        assert high is not None
        assert low < value < high


def test_credit_of_a_score_that_is_not_finite_is_zero() -> None:
    assert [credit(x) for x in (1e-30, 0.0, -0.0, -1e-30, math.inf, math.nan)] == [1, 0.5, 0.5, 0, 0, 0]


def test_calibration_of_a_calibrated_model_is_zero() -> None:
    # 10 pairs at .7, 7 of them right: the chosen completion has probability .7 seven times and .3 three times.
    p = torch.tensor([0.7] * 7 + [0.3] * 3, dtype=torch.float64).numpy()
    assert expected_calibration_error(p, 10) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(p[:7], 10) == pytest.approx(0.3)


def test_settings_refuse_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="batch_size"):
        PreferenceSettings(batch_size=3)  # type: ignore[call-arg]
    assert issubclass(PreferenceSuite, Suite)
    assert issubclass(RunFailedError, AlignError)
