"""The objective, the guards and the margins of a comparison, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alignkit.config import RunConfig
from alignkit.contract import registry
from alignkit.errors import ConfigError
from alignkit_checks.compared import refuse_comparison
from alignkit_eval.comparison.compare import compare
from alignkit_eval.comparison.result import ContrastResult
from alignkit_eval.comparison.rules import Rules, described
from alignkit_eval.comparison.verdict import Judged, verdict_of
from alignkit_eval.suites import generate, kl, perplexity, prefs

from tests.helpers.comparison import contrast
from tests.helpers.runs import align

SUITES = {
    "prefs": prefs.CONTRASTS,
    "perplexity": perplexity.CONTRASTS,
    "kl": kl.CONTRASTS,
    "generate": generate.CONTRASTS,
}


def rules_of(suites: Sequence[str], rules: Rules) -> dict[str, Any]:
    return described(rules.applied({name: SUITES[name] for name in suites}))


def test_accuracy_decides_and_perplexity_kl_and_quality_are_guards() -> None:
    found = rules_of(list(SUITES), Rules())
    assert found["objective"] == ["accuracy_sum", "accuracy_mean"]
    assert found["guards"] == ["perplexity", "kl", "quality"]
    assert found["margins"]["accuracy_sum"] == 0.03


def test_quality_decides_where_nothing_else_does() -> None:
    found = rules_of(["perplexity", "generate"], Rules())
    assert (found["objective"], found["guards"]) == (["quality"], ["perplexity"])


def test_names_margins_and_no_guards() -> None:
    rules = Rules(("perplexity", "prefs/accuracy_best"), (), {"perplexity": 0.2, "prefs/accuracy_ref": 0.5})
    found = rules_of(list(SUITES), rules)
    assert (found["objective"], found["guards"]) == (["accuracy_best", "perplexity"], [])
    assert (found["margins"]["perplexity"], found["margins"]["accuracy_ref"]) == (0.2, 0.5)
    half = rules_of(["prefs"], Rules(guards=("accuracy_mean",)))
    assert (half["objective"], half["guards"]) == (["accuracy_sum"], ["accuracy_mean"])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            Rules(objective=("acuracy_sum",)),
            "objective acuracy_sum: these runs have no such metric, did you mean .accu",
        ),
        (Rules(guards=("kll",)), "guard kll: these runs have no such metric, did you mean .kl"),
        (Rules(margins={"kl": float("inf")}), "margin of kl: inf is not a positive number"),
        (Rules(("kl",), ("kl",)), "kl is in the objective and among the guards"),
    ],
)
def test_names_that_cannot_be_used_are_refused(rules: Rules, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rules.require(SUITES)


@pytest.mark.parametrize(
    ("section", "message"),
    [({"objective": []}, "it names no metric"), ({"objective": "kl,x", "guards": "x"}, "x is in compare.objective as")],
)
def test_a_configuration_that_cannot_be_used_is_refused_before_training(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        refuse_comparison(RunConfig.model_validate({"method": {"name": "orpo"}, "compare": section}))


@pytest.mark.parametrize(
    ("section", "suites", "message"),
    [
        (
            {"objective": "acuracy_sum"},
            "prefs",
            'compare.objective: no suite has a metric acuracy_sum, did you mean "acc',
        ),
        (
            {"guards": ["perplexty"]},
            "prefs",
            'compare.guards: no suite has a metric perplexty, did you mean "perplexity"',
        ),
        ({"margins": {"kll": 0.1}}, "prefs,kl", r"compare.margins.kll: .*\(this run measures accuracy_sum, "),
        ({"objective": "pref/accuracy_sum"}, "prefs", 'did you mean "prefs/accuracy_sum"'),
        ({"objective": "prefs/perplexity"}, "prefs", "no suite has a metric prefs/perplexity"),
        ({"guards": "winrate"}, "generate", 'did you mean "win_rate"'),
        ({"objective": "prefs/accuracy_sum,reward/any,demo_facts/acc", "guards": "kl,judge/ties"}, "lm-eval", None),
        ({"margins": {"lm-eval/task/acc": 0.1, "accuracy_mean": 0.1}}, "perplexity", None),
    ],
)
def test_metrics_that_no_suite_has_are_refused_before_training(
    section: dict[str, Any], suites: str, message: str | None
) -> None:
    config = RunConfig.model_validate({"method": {"name": "orpo"}, "compare": section, "eval": {"suites": suites}})
    if message is None:
        refuse_comparison(config)
    else:
        with pytest.raises(ConfigError, match=message):
            refuse_comparison(config)


def test_every_built_in_suite_says_what_its_models_can_be_compared_by() -> None:
    built_in = [entry.name for entry in registry.entries("align.suites") if entry.built_in]
    assert [name for name in built_in if not registry.load_suite(name)[1].metrics] == []


def result(metric: str, outcome: str, arm: str = "B") -> ContrastResult:
    diff = {"better": 0.1, "worse": -0.1}.get(outcome, 0.0)
    p = 0.001 if diff else 0.5
    same = {"margin": 0.03, "p_equivalent_holm": 0.001 if outcome == "equivalent" else 0.9}
    about = {"p": p, "p_holm": p, "n": 100, "clusters": 50, "seeds": 3, "higher_is_better": True, "test": "t"}
    guard = {"guard": metric not in ("accuracy_sum", "accuracy_mean")}
    return ContrastResult(arm, "any", metric, diff, diff - 0.02, diff + 0.02, detectable=0.04, **about, **same, **guard)  # type: ignore[arg-type]


OUTCOMES = ("better", "worse", "equivalent", "undecided")


@pytest.mark.parametrize("objective", OUTCOMES)
@pytest.mark.parametrize("guard", OUTCOMES)
def test_the_sentence_names_every_kind_and_no_winner_has_a_worse_guard(objective: str, guard: str) -> None:
    found = [result("accuracy_sum", objective), result("accuracy_mean", objective), result("quality", guard)]
    text, winner = verdict_of("A", ["A", "B"], found, [Judged("A", c) for c in found])
    assert f"Of B, quality is {guard} (" in text
    headline = text.partition(". Of B")[0]
    words = {"better": "better than", "worse": "worse than", "equivalent": "are equivalent", "undecided": "undecided"}
    contradicted = {objective, guard} == {"better", "worse"}
    assert (words[objective] in headline) is not contradicted
    assert ("no winner" in headline) is contradicted
    assert winner == (None if contradicted else {"better": "B", "worse": "A"}.get(objective))


def test_a_guard_against_another_arm_than_the_baseline_counts() -> None:
    """C beats A and B in accuracy, but its quality is worse than that of B."""
    names = ("accuracy_sum", "accuracy_mean")
    table = [result(name, "better", arm) for arm in ("B", "C") for name in names]
    pairs = [*(Judged("A", c) for c in table), *(Judged("B", result(name, "better", "C")) for name in names)]
    assert verdict_of("A", ["A", "B", "C"], table, pairs)[1] == "C"
    guarded = [*pairs, Judged("B", result("quality", "worse", "C"))]
    assert verdict_of("A", ["A", "B", "C"], table, guarded)[1] is None


def test_an_interval_without_zero_and_a_p_above_the_limit_are_explained() -> None:
    odd = ContrastResult(**{**vars(result("accuracy_sum", "undecided")), "low": 0.001, "high": 0.1, "p_holm": 0.08})
    table = [odd, result("accuracy_mean", "undecided"), result("kl", "undecided")]
    text, _ = verdict_of("A", ["A", "B"], table, [Judged("A", c) for c in table])
    assert "The interval of accuracy sum leaves out 0 although p is not below 0.05" in text
    assert "corrected for 3 of them" in text


def test_from_the_configuration_and_the_command_line(
    grid: dict[str, Path], edited: Callable[..., Path], tmp_path: Path
) -> None:
    section = {"objective": ["perplexity"], "guards": ["accuracy_sum"], "margins": {"accuracy_sum": 0.01, "kll": 0.1}}

    def configured(record: dict[str, Any]) -> dict[str, Any]:
        return record | {"config": record["config"] | {"compare": section}}

    run = edited("l0-s0", "run.json", configured)
    found = compare([run, grid["l5-s0"]])
    assert (found.rules["objective"], found.rules["guards"]) == (["perplexity"], ["accuracy_sum"])
    assert contrast(found, "accuracy_sum").margin == 0.01
    assert [arm.name for arm in found.arms] == ["orpo lambda=0.0", "orpo lambda=5.0"], "it is no setting of an arm"
    assert "compare: margin of kll has no effect: these runs have no such metric" in found.notes
    assert any("different sections compare: that of the first one is used" in note for note in found.notes)

    compared = partial(align, "compare", str(run), str(grid["l5-s0"]), cwd=tmp_path)
    done = compared("--objective", "accuracy_mean", "--guards", "none", "--margin", "accuracy_sum=0.02", "--json")
    rules = json.loads(done.stdout)["rules"]
    assert (rules["objective"], rules["guards"], rules["margins"]["accuracy_sum"]) == (["accuracy_mean"], [], 0.02)
    wrong = compared("--objective", "accuracy_sum,")
    assert (wrong.returncode, wrong.stderr.splitlines()[0][:47]) == (
        2,
        'Error: --objective "accuracy_sum,": write names',
    )


def test_divergences_from_different_start_models_are_not_contrasted(
    grid: dict[str, Path], edited: Callable[..., Path]
) -> None:
    def relative(stored: dict[str, Any]) -> dict[str, Any]:
        stored["contrasts"] = [c | {"against_start": c["metric"] == "perplexity"} for c in stored["contrasts"]]
        return stored | {"provenance": stored["provenance"] | {"start_weights": "one"}}

    def elsewhere(stored: dict[str, Any]) -> dict[str, Any]:
        return relative(stored) | {"provenance": stored["provenance"] | {"start_weights": "another"}}

    run, same = (edited(name, "eval/perplexity.json", relative, f"own-{name}") for name in ("l0-s0", "l5-s0"))
    other = edited("l5-s0", "eval/perplexity.json", elsewhere, "other")
    assert "perplexity" in {c.metric for c in compare([run, same]).contrasts}
    found = compare([run, other])
    assert "perplexity" not in {c.metric for c in found.contrasts}
    assert any("perplexity is left out: the runs started from different models" in note for note in found.notes)
    assert all(c.against_start for c in kl.KLSuite(kl.KLSettings()).contrasts())
    assert not any(c.against_start for c in kl.KLSuite(kl.KLSettings(against="demo")).contrasts())
