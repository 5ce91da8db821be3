"""Comparison of runs: arms, pairing of seeds, costs, and the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alignkit_eval.comparison.compare import compare
from alignkit_eval.comparison.paired import holm

from tests.helpers.comparison import contrast, evaluated
from tests.helpers.runs import align


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
    assert (result.n, result.seeds, result.test) == (80, 2, "t, one degree of freedom")
    assert result.p_holm is not None
    assert result.p is not None
    assert result.p_holm >= result.p
    assert found.arms[0].metrics["prefs"]["accuracy_sum"].value == pytest.approx((sums[0] + sums[1]) / 2)


def test_an_accuracy_over_seeds_has_an_interval_inside_zero_and_one(
    grid: dict[str, Path], edited: Callable[..., Path]
) -> None:
    def right(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"credit_sum": 1.0, "credit_mean": float(i > 0)} for i, row in enumerate(rows)]

    perfect = [edited(f"l0-s{seed}", "eval/prefs.items.jsonl", right, f"perfect-{seed}") for seed in (0, 1)]
    metrics = compare([*perfect, grid["l5-s0"], grid["l5-s1"]]).arms[0].metrics["prefs"]
    for name in ("accuracy_sum", "accuracy_mean"):
        value, low, high = metrics[name]
        assert low is not None
        assert high is not None
        assert 0 < low < value <= high <= 1


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
    assert any("for an arm with one seed" in note for note in found.notes)


def test_the_start_model_can_be_the_baseline(grid: dict[str, Path]) -> None:
    found = compare([grid["l0-s0"], grid["l0-s1"]], "start")
    assert [arm.name for arm in found.arms] == ["start", "orpo"]
    assert contrast(found, "accuracy_sum").seeds == 2
    assert found.arms[0].cost.tokens is None
    assert any("accuracy_ref is left out" in note for note in found.notes)


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
    assert any("have no common seed and are paired in order" in note for note in crossed.notes)


def stage(before: Path, name: str = "model") -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a change of a run's record after which the run started from the run ``before``."""

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
    assert compare([grid["l5-s0"], lost]).arms[1].cost.tokens is None, "the cost of the lost stage is unknown"


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


def test_one_seed_stands_in_the_verdict_itself(grid: dict[str, Path]) -> None:
    assert " on one seed" in compare([grid["l0-s0"], grid["l5-s0"]]).verdict
    assert " on one seed" not in compare(list(grid.values())).verdict


def test_command_line(grid: dict[str, Path], tmp_path: Path) -> None:
    done = align("compare", *grid.values(), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed.keys() >= {"baseline", "contrasts", "verdict"}
    keys = {"run", "metric", "diff", "low", "high", "p", "p_holm", "n", "clusters", "detectable", "arm", "seeds"}
    assert all(c.keys() >= keys for c in printed["contrasts"])
    assert printed["contrasts"][0]["seeds"] == [0, 1]
    assert printed["contrasts"][0]["pairs"] == 2
    assert printed["arms"][0]["metrics"]["prefs"]["accuracy_sum"].keys() == {"value", "low", "high"}
    holm_again = holm([c["p"] for c in printed["contrasts"]])
    assert [c["p_holm"] for c in printed["contrasts"]] == pytest.approx(holm_again), (
        "a reader can check it from the table"
    )
    shown = align("compare", *grid.values(), "--html", tmp_path / "page.html", cwd=tmp_path)
    assert shown.stdout.splitlines()[0].startswith("orpo lambda=5.0")
    assert "Cost of training" in shown.stdout
    assert max(map(len, shown.stdout.partition("Arms")[2].partition("note:")[0].splitlines())) <= 80
    assert "<html" in (tmp_path / "page.html").read_text()
    missing = align("compare", grid["l0-s0"], tmp_path / "nothing", cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr.startswith("Error: ")


def test_results_of_one_run_on_different_weights_are_noted(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    assert not any("different weights" in note for note in compare([grid["l0-s0"], grid["l5-s0"]]).notes)
    other = {"weights": "0" * 64}
    model = edited("l5-s0", "eval/prefs.json", lambda kept: kept | {"provenance": kept["provenance"] | other})
    first, *_ = compare([grid["l0-s0"], model]).notes
    assert first.startswith(f"{model.resolve()}: perplexity and prefs were evaluated on different weights")


def test_a_source_that_changed_between_runs_is_noted(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    assert not any("different rows" in note for note in compare(list(grid.values())).notes)
    other = edited("l5-s0", "run.json", lambda record: record | {"data": record["data"] | {"hash": "0"}})
    first, *_ = compare([grid["l0-s0"], other]).notes
    assert "were trained on different rows although their settings name the same data" in first
