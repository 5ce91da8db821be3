"""Comparing runs: arms, pairing, what is refused and what is only said, the verdict, the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alignkit.errors import ConfigError
from alignkit_eval.comparison.compare import compare
from alignkit_eval.comparison.paired import holm
from alignkit_eval.comparison.result import Comparison, ContrastResult
from alignkit_eval.comparison.verdict import Judged, verdict_of

from tests.helpers.runs import align, short_run


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ORPO with two lambdas and two seeds, on a few held-out pairs."""
    output = tmp_path_factory.mktemp("runs")
    runs = {}
    for strength in (0.0, 5.0):
        for seed in (0, 1):
            name = f"l{strength:g}-s{seed}"
            method = {"name": "orpo", "lambda": strength}
            quick = {"samples": 0, "settings": {"perplexity": {"text": None}}}
            sections: dict[str, Any] = {"train": {"max_steps": 12, "save_strategy": "no"}, "data": {"eval_limit": 80}}
            runs[name] = short_run(
                output, name, method, run={"seed": seed, "plots": False}, eval=quick, **sections
            ).directory
    return runs


@pytest.fixture
def edited(grid: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Make a copy of a run with one of its files changed."""

    def copy(run: str, file: str, change: Callable[[Any], Any], name: str = "edited") -> Path:
        target = shutil.copytree(grid[run], tmp_path / name)
        path = target / file
        if file.endswith(".jsonl"):
            rows = change([json.loads(line) for line in path.read_text().splitlines()])
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            path.write_text(json.dumps(change(json.loads(path.read_text()))))
        return target

    return copy


def evaluated(results: Path, edited: Callable[..., Path]) -> Path:
    """Return a directory as ``align eval --output`` makes it: results alone."""
    model = edited("l0-s0", "run.json", lambda record: record, "model")
    (model / "run.json").unlink()
    shutil.rmtree(model / "eval")
    shutil.copytree(results, model / "eval")
    return model


def contrast(comparison: Comparison, metric: str) -> ContrastResult:
    (found,) = [c for c in comparison.contrasts if c.metric == metric]
    return found


def test_runs_that_differ_in_the_seed_are_one_arm(grid: dict[str, Path]) -> None:
    found = compare(list(grid.values()))
    assert [(arm.name, arm.seeds) for arm in found.arms] == [("orpo lambda=0.0", (0, 1)), ("orpo lambda=5.0", (0, 1))]
    assert found.baseline == "orpo lambda=0.0"
    assert found.arms[1].settings == {"method": "orpo", "lambda": 5.0}
    assert found.settings["train.max_steps"] == 12
    assert "lambda" not in found.settings
    values = [json.loads((run / "run.json").read_text())["evaluation"]["after"] for run in grid.values()]
    sums = [v["prefs"]["accuracy_sum"]["value"] for v in values]
    result = contrast(found, "accuracy_sum")
    assert result.diff == pytest.approx((sums[2] + sums[3]) / 2 - (sums[0] + sums[1]) / 2)
    assert (result.n, result.seeds, result.test) == (80, 2, "t, Satterthwaite")
    assert result.p_holm is not None
    assert result.p is not None
    assert result.p_holm >= result.p
    assert found.arms[0].metrics["prefs"]["accuracy_sum"].value == pytest.approx((sums[0] + sums[1]) / 2)


def test_perplexity_is_compared_in_its_own_unit(grid: dict[str, Path]) -> None:
    found = compare([grid["l0-s0"], grid["l5-s0"]])
    values = [
        json.loads((grid[name] / "eval/perplexity.json").read_text())["metrics"]["perplexity"]["value"]
        for name in ("l0-s0", "l5-s0")
    ]
    result = contrast(found, "perplexity")
    assert result.diff == pytest.approx(values[1] - values[0])
    assert result.low is not None
    assert result.high is not None
    assert result.low < result.diff < result.high
    assert not result.higher_is_better
    assert result.test == "cluster sign-flip"
    assert any("one seed" in note for note in found.notes)


def test_the_start_model_can_be_the_baseline(grid: dict[str, Path]) -> None:
    found = compare([grid["l0-s0"], grid["l0-s1"]], "start")
    assert [arm.name for arm in found.arms] == ["start", "orpo"]
    assert contrast(found, "accuracy_sum").seeds == 2
    assert found.arms[0].cost.tokens is None
    assert any("accuracy_ref is left out" in note for note in found.notes)


def test_a_start_model_that_is_not_shared(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    def other_start(record: dict[str, Any]) -> dict[str, Any]:
        record["model"]["hash"] = "0" * 64
        return record

    with pytest.raises(ConfigError, match=r"l0-s0 and .*edited started from different ones"):
        compare([grid["l0-s0"], edited("l5-s0", "run.json", other_start)], "start")
    model = evaluated(grid["l0-s0"] / "eval" / "before", edited)
    with pytest.raises(ConfigError, match="model is not known to have one"):
        compare([grid["l0-s0"], model], "start")


def test_a_model_without_seeds_stands_against_every_seed(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    model = evaluated(grid["l0-s0"] / "eval" / "before", edited)
    runs = [grid["l0-s0"], grid["l0-s1"]]
    arm, baseline = (contrast(compare(order), "accuracy_sum") for order in ([*runs, model], [model, *runs]))
    assert (arm.seeds, baseline.seeds) == (2, 2)
    assert arm.diff == pytest.approx(-baseline.diff)
    assert arm.p == pytest.approx(baseline.p)


def test_shared_seeds_are_paired_and_the_others_named(grid: dict[str, Path]) -> None:
    found = compare([grid["l0-s0"], grid["l0-s1"], grid["l5-s1"]])
    assert contrast(found, "accuracy_sum").seeds == 1
    assert any("left out: [0]" in note for note in found.notes)
    crossed = compare([grid["l0-s0"], grid["l5-s1"]])
    assert any("share no seed and are paired in order" in note for note in crossed.notes)


def stage(before: Path, name: str = "model") -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Say in a run's record that it started from a run."""

    def change(record: dict[str, Any]) -> dict[str, Any]:
        record["model"] |= {"path": str(before / name), "name": str(before), "hash": before.name}
        record["config"]["model"]["name"] = str(before)
        return record

    return change


def test_costs_add_up_over_stages(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    second = edited("l5-s0", "run.json", stage(grid["l0-s0"]), "second")
    alone, both = (arm.cost for arm in compare([grid["l5-s0"], second]).arms)
    first = json.loads((grid["l0-s0"] / "run.json").read_text())["train"]
    assert both.tokens == pytest.approx((alone.tokens or 0) + first["tokens"])
    assert both.flops == pytest.approx((alone.flops or 0) + first["flops"])
    third = edited("l5-s0", "run.json", stage(second, name="checkpoints/checkpoint-12"), "third")
    assert compare([grid["l5-s0"], third]).arms[1].cost.tokens == pytest.approx(
        (both.tokens or 0) + (alone.tokens or 0)
    )
    shutil.rmtree(second)
    lost = edited("l5-s0", "run.json", stage(second), "lost")
    assert compare([grid["l5-s0"], lost]).arms[1].cost.tokens is None, "what the lost stage cost is not known"


def test_pipelines_over_seeds_are_one_arm(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    second = [edited(f"l5-s{seed}", "run.json", stage(grid[f"l0-s{seed}"]), f"second-{seed}") for seed in (0, 1)]
    found = compare([grid["l0-s0"], grid["l0-s1"], *second])
    assert [(arm.name, arm.seeds) for arm in found.arms] == [("orpo", (0, 1)), ("orpo+orpo", (0, 1))]
    assert contrast(found, "accuracy_sum").seeds == 2
    # One seed of the second stage on two first stages: not two seeds of one arm.
    again = edited("l5-s0", "run.json", stage(grid["l0-s1"]), "again")
    other = compare([grid["l0-s0"], second[0], again])
    assert [arm.seeds for arm in other.arms] == [(0,), (0,), (0,)]
    assert len({arm.name for arm in other.arms}) == 3


def test_an_arm_is_named_by_its_methods_and_what_else_differs_is_said(
    grid: dict[str, Path], edited: Callable[..., Path]
) -> None:
    def dpo(record: dict[str, Any]) -> dict[str, Any]:
        record["method"] = "dpo"
        record["config"]["method"] = {"name": "dpo", "beta": 0.1}
        record["config"]["train"]["learning_rate"] = 1e-6
        return record

    found = compare([grid["l0-s0"], edited("l5-s0", "run.json", dpo)])
    assert [arm.name for arm in found.arms] == ["orpo", "dpo"]
    assert found.arms[1].settings == {"method": "dpo", "train.learning_rate": 1e-6}
    assert any("not trained alike: train.learning_rate is 0.001 (orpo), 1e-06 (dpo)" in note for note in found.notes)


def test_different_items_are_refused(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    fewer = edited("l5-s0", "eval/prefs.items.jsonl", lambda rows: rows[:-2])
    with pytest.raises(ConfigError, match=r"suite prefs was run on different items: 2 only in .*l0-s0 \(first: test-"):
        compare([grid["l0-s0"], fewer])

    def other_text(stored: dict[str, Any]) -> dict[str, Any]:
        stored["provenance"]["content"] = "0" * 64
        return stored

    with pytest.raises(ConfigError, match="the same ids, but other texts"):
        compare([grid["l0-s0"], edited("l5-s0", "eval/prefs.json", other_text, "texts")])


def test_results_that_cannot_be_paired(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    """Damaged or odd items end in a sentence that names the place."""

    def change(key: str, value: Any) -> Callable[[Any], Any]:
        return lambda rows: [rows[0] | {key: value}, *rows[1:]]

    items = "eval/prefs.items.jsonl"
    with pytest.raises(ConfigError, match=r"prefs\.items\.jsonl: the item 'test-.*' has no number 'credit_sum'"):
        compare([grid["l0-s0"], edited("l5-s0", items, change("credit_sum", None), "null")])
    with pytest.raises(ConfigError, match="into different clusters"):
        compare([grid["l0-s0"], edited("l5-s0", items, change("cluster", "another"), "cluster")])
    twice = edited("l5-s0", items, lambda rows: [*rows, rows[0]], "twice")
    for runs in ([grid["l0-s0"], twice], [twice, grid["l0-s0"]]):
        with pytest.raises(ConfigError, match=r"twice has the id 'test-.*' more than once"):
            compare(runs)


def test_a_metric_does_not_judge_without_its_partner(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    def without_mean(stored: dict[str, Any]) -> dict[str, Any]:
        stored["contrasts"] = [c for c in stored["contrasts"] if c["metric"] != "accuracy_mean"]
        return stored

    found = compare([grid["l0-s0"], edited("l5-s0", "eval/prefs.json", without_mean)])
    assert any("accuracy_mean is left out" in note for note in found.notes)
    assert found.winner is None
    assert found.verdict.startswith("No metric that these runs share says which is better")

    def for_nobody(stored: dict[str, Any]) -> dict[str, Any]:
        stored["contrasts"][0]["where"] = {"task": "none"}
        return stored

    odd = [edited(name, "eval/perplexity.json", for_nobody, f"odd-{name}") for name in ("l0-s0", "l5-s0")]
    assert any("no item counts towards it" in note for note in compare(odd).notes)


def test_an_interval_without_end_is_not_given(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    """Two clusters that lie far apart: on the scale of perplexity the upper end is beyond any number."""

    def apart(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            row | {"cluster": str(i % 2), "nll": row["tokens"] * (200.0 if i % 2 else 1.0)}
            for i, row in enumerate(rows)
        ]

    def two_clusters(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"cluster": str(i % 2)} for i, row in enumerate(rows)]

    items = "eval/perplexity.items.jsonl"
    runs = [edited("l0-s0", items, two_clusters, "base"), edited("l5-s0", items, apart, "apart")]
    result = contrast(compare(runs), "perplexity")
    assert result.high is None
    assert result.detectable is None
    json.dumps(compare(runs).to_json(), allow_nan=False)


def test_what_cannot_be_compared_is_left_out_and_said(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    def tokenizer(stored: dict[str, Any]) -> dict[str, Any]:
        stored["provenance"]["tokenizer"] = "another"
        return stored

    found = compare([grid["l0-s0"], edited("l5-s0", "eval/perplexity.json", tokenizer, "tokenizer")])
    assert "perplexity" not in {c.metric for c in found.contrasts}
    assert "bits_per_byte" in {c.metric for c in found.contrasts}
    assert any("perplexity is left out: the models have different tokenizers" in note for note in found.notes)

    def settings(stored: dict[str, Any]) -> dict[str, Any]:
        stored["settings"]["calibration_bins"] = 3
        return stored

    found = compare([grid["l0-s0"], edited("l5-s0", "eval/prefs.json", settings, "settings")])
    assert {c.suite for c in found.contrasts} == {"perplexity"}
    assert any("with different settings" in note for note in found.notes)
    without = edited("l5-s0", "eval/prefs.json", lambda stored: stored, "without")
    (without / "eval/prefs.json").unlink()
    assert any("has no result of it" in note for note in compare([grid["l0-s0"], without]).notes)
    (without / "eval/perplexity.json").unlink()
    shutil.copy(grid["l5-s0"] / "eval/prefs.json", without / "eval")
    alone = edited("l0-s0", "eval/prefs.json", settings, "alone")
    with pytest.raises(ConfigError, match=r"cannot be compared.*perplexity is left out: .*prefs is left out"):
        compare([alone, without])


def test_how_results_came_about_is_said_where_it_differs(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    def elsewhere(stored: dict[str, Any]) -> dict[str, Any]:
        stored["provenance"] |= {"plugin": "alignkit 0.0.1", "start_weights": "0" * 64}
        return stored

    notes = compare([grid["l0-s0"], edited("l5-s0", "eval/prefs.json", elsewhere)]).notes
    assert any("suite prefs: the results were made by different versions of its code" in note for note in notes)
    assert any("suite prefs: the runs started from different models" in note for note in notes)
    assert not any("suite perplexity" in note for note in notes)


def test_different_conventions_are_compared_and_said(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    def trl(record: dict[str, Any]) -> dict[str, Any]:
        record["config"]["method"]["convention"] = "trl"
        record["conventions"]["nll_scope"] = "full"
        return record

    found = compare([grid["l0-s0"], edited("l0-s0", "run.json", trl)])
    assert any("nll_scope is completion and full" in note for note in found.notes)
    assert contrast(found, "accuracy_sum").p == 1.0


@pytest.mark.parametrize("status", ["running", "failed"])
def test_unfinished_runs_are_refused(grid: dict[str, Path], edited: Callable[..., Path], status: str) -> None:
    unfinished = edited("l5-s0", "run.json", lambda record: record | {"status": status})
    with pytest.raises(ConfigError, match=f"is not a finished run .its status is {status}"):
        compare([grid["l0-s0"], unfinished])


def test_one_arm_or_no_run_at_all(grid: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is one arm only"):
        compare([grid["l0-s0"], grid["l0-s1"]])
    with pytest.raises(ConfigError, match="neither a run nor the result of an evaluation"):
        compare([grid["l0-s0"], tmp_path])
    with pytest.raises(ConfigError, match="name at least one run"):
        compare([])
    with pytest.raises(ConfigError, match=r"did you mean .*l0-s0\?"):
        compare([grid["l0-s0"], grid["l0-s0"].parent])
    again = shutil.copytree(grid["l0-s0"], tmp_path / "again")
    with pytest.raises(ConfigError, match="one configuration and one seed"):
        compare([grid["l0-s0"], again, grid["l5-s0"]])


# ------------------------------------------------------------------------------------------------- the verdict


def found(arm: str, metric: str, diff: float, p: float) -> ContrastResult:
    about = {"p": p, "p_holm": p, "n": 100, "clusters": 50, "seeds": 3, "higher_is_better": True, "test": "t"}
    return ContrastResult(arm, "prefs", metric, diff, diff - 0.05, diff + 0.05, detectable=0.04, **about)  # type: ignore[arg-type]


def verdict(*contrasts: ContrastResult) -> tuple[str, str | None]:
    return verdict_of("A", ["A", "B"], contrasts, [Judged("A", c) for c in contrasts])


def test_a_winner_needs_sum_and_mean() -> None:
    both = verdict(found("B", "accuracy_sum", 0.1, 0.01), found("B", "accuracy_mean", 0.08, 0.02))
    assert both[1] == "B"
    assert both[0].startswith("B is better than A (accuracy sum +0.100 [+0.050, +0.150], p 0.010; accuracy mean")
    assert verdict(found("B", "accuracy_sum", -0.1, 0.01), found("B", "accuracy_mean", -0.1, 0.01))[1] == "A"
    one = verdict(found("B", "accuracy_sum", 0.1, 0.01), found("B", "accuracy_mean", 0.08, 0.2))
    assert one[1] is None
    assert "by one metric and not by the other" in one[0]
    against = verdict(found("B", "accuracy_sum", 0.1, 0.01), found("B", "accuracy_mean", -0.08, 0.01))
    assert against[1] is None
    assert "cannot be ranked: the metrics disagree" in against[0]
    neither = verdict(found("B", "accuracy_sum", 0.01, 0.6), found("B", "accuracy_mean", 0.01, 0.6))
    assert neither[1] is None
    assert "cannot be told apart" in neither[0]
    assert "a difference of 0.040 would have been found four times in five" in neither[0]


def test_the_verdict_says_no_more_than_the_table() -> None:
    """Corrected over the judging pairs alone B would win; in the table, over every contrast, nothing is significant."""
    table = [found("B", "accuracy_sum", 0.1, 0.06), found("B", "accuracy_mean", 0.1, 0.06)]
    pairs = [Judged("A", found("B", metric, 0.1, 0.03)) for metric in ("accuracy_sum", "accuracy_mean")]
    said, winner = verdict_of("A", ["A", "B"], table, pairs)
    assert winner is None
    assert "cannot be told apart" in said


def test_the_best_of_three_beats_both_others() -> None:
    def pair(base: str, arm: str, diff: float, p: float) -> list[Judged]:
        return [Judged(base, found(arm, metric, diff, p)) for metric in ("accuracy_sum", "accuracy_mean")]

    to_baseline = [*pair("A", "B", 0.1, 0.01), *pair("A", "C", 0.2, 0.01)]
    table = [judged.contrast for judged in to_baseline]
    said, winner = verdict_of("A", ["A", "B", "C"], table, [*to_baseline, *pair("B", "C", 0.1, 0.01)])
    assert winner == "C"
    assert said.startswith("C is better than every other arm. B is better than A (")
    said, winner = verdict_of("A", ["A", "B", "C"], table, [*to_baseline, *pair("B", "C", 0.1, 0.2)])
    assert winner is None
    assert said.endswith("No arm is better than every other one.")


def test_one_seed_stands_in_the_verdict_itself(grid: dict[str, Path]) -> None:
    assert " on one seed" in compare([grid["l0-s0"], grid["l5-s0"]]).verdict
    assert " on one seed" not in compare(list(grid.values())).verdict


# ------------------------------------------------------------------------------------------------- the command


def test_command_line(grid: dict[str, Path], tmp_path: Path) -> None:
    done = align("compare", *grid.values(), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.keys() >= {"baseline", "contrasts", "verdict"}
    keys = {"run", "metric", "diff", "low", "high", "p", "p_holm", "n", "clusters", "detectable", "arm", "seeds"}
    assert all(c.keys() >= keys for c in said["contrasts"])
    assert said["contrasts"][0]["seeds"] == [0, 1]
    assert said["contrasts"][0]["pairs"] == 2
    assert said["arms"][0]["metrics"]["prefs"]["accuracy_sum"].keys() == {"value", "low", "high"}
    holm_again = holm([c["p"] for c in said["contrasts"]])
    assert [c["p_holm"] for c in said["contrasts"]] == pytest.approx(holm_again), "a reader can check it from the table"
    shown = align("compare", *grid.values(), "--html", tmp_path / "page.html", cwd=tmp_path)
    assert shown.stdout.splitlines()[0].startswith("orpo lambda=5.0")
    assert "Cost of training" in shown.stdout
    assert max(map(len, shown.stdout.partition("Arms")[2].partition("note:")[0].splitlines())) <= 80
    assert "<html" in (tmp_path / "page.html").read_text()
    missing = align("compare", grid["l0-s0"], tmp_path / "nothing", cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr.startswith("Error: ")
