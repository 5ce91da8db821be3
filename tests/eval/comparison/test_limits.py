"""What cannot be compared: refused, or left out with a note."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alignkit.errors import ConfigError
from alignkit_eval.comparison.compare import compare

from tests.helpers.comparison import contrast, evaluated


def test_different_items_are_refused(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    fewer = edited("l5-s0", "eval/prefs.items.jsonl", lambda rows: rows[:-2])
    with pytest.raises(ConfigError, match=r"suite prefs was run on different items: 2 only in .*l0-s0 \(first: test-"):
        compare([grid["l0-s0"], fewer])

    def other_text(stored: dict[str, Any]) -> dict[str, Any]:
        stored["provenance"]["content"] = "0" * 64
        return stored

    with pytest.raises(ConfigError, match="the same ids with different texts"):
        compare([grid["l0-s0"], edited("l5-s0", "eval/prefs.json", other_text, "texts")])


def test_results_that_cannot_be_paired(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    """The error for damaged items names the file and the item."""

    def change(key: str, value: Any) -> Callable[[Any], Any]:
        return lambda rows: [rows[0] | {key: value}, *rows[1:]]

    items = "eval/prefs.items.jsonl"
    with pytest.raises(ConfigError, match=r"prefs\.items\.jsonl: the item 'test-.*' has no number 'credit_sum'"):
        compare([grid["l0-s0"], edited("l5-s0", items, change("credit_sum", None), "null")])
    with pytest.raises(ConfigError, match="has different clusters in"):
        compare([grid["l0-s0"], edited("l5-s0", items, change("cluster", "another"), "cluster")])
    twice = edited("l5-s0", items, lambda rows: [*rows, rows[0]], "twice")
    for runs in ([grid["l0-s0"], twice], [twice, grid["l0-s0"]]):
        with pytest.raises(ConfigError, match=r"twice has duplicate ids \(first: 'test-.*'\)"):
            compare(runs)


def test_a_metric_does_not_judge_without_its_partner(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    def without_mean(stored: dict[str, Any]) -> dict[str, Any]:
        stored["contrasts"] = [c for c in stored["contrasts"] if c["metric"] != "accuracy_mean"]
        return stored

    found = compare([grid["l0-s0"], edited("l5-s0", "eval/prefs.json", without_mean)])
    assert any("accuracy_mean is left out" in note for note in found.notes)
    assert found.winner is None
    assert found.verdict.startswith("No deciding metric is shared by these runs")

    def for_nobody(stored: dict[str, Any]) -> dict[str, Any]:
        stored["contrasts"][0]["where"] = {"task": "none"}
        return stored

    odd = [edited(name, "eval/perplexity.json", for_nobody, f"odd-{name}") for name in ("l0-s0", "l5-s0")]
    assert any("it applies to no item" in note for note in compare(odd).notes)


def test_an_interval_without_end_is_not_given(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    """Two clusters far apart: in perplexity, the upper end of the interval overflows."""

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
    assert any("has no result for it" in note for note in compare([grid["l0-s0"], without]).notes)
    (without / "eval/perplexity.json").unlink()
    shutil.copy(grid["l5-s0"] / "eval/prefs.json", without / "eval")
    alone = edited("l0-s0", "eval/prefs.json", settings, "alone")
    with pytest.raises(ConfigError, match=r"no suite in common.*perplexity is left out: .*prefs is left out"):
        compare([alone, without])


def test_how_results_came_about_is_said_where_it_differs(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    def elsewhere(stored: dict[str, Any]) -> dict[str, Any]:
        stored["provenance"] |= {"plugin": "alignkit 0.0.1", "start_weights": "0" * 64}
        return stored

    notes = compare([grid["l0-s0"], edited("l5-s0", "eval/prefs.json", elsewhere)]).notes
    assert any("suite prefs: the results were made by different versions of its code" in note for note in notes)
    assert any("accuracy_ref is left out: the runs started from different models" in note for note in notes)
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
    with pytest.raises(ConfigError, match="there is only one arm"):
        compare([grid["l0-s0"], grid["l0-s1"]])
    with pytest.raises(ConfigError, match="neither a run nor the result of an evaluation"):
        compare([grid["l0-s0"], tmp_path])
    with pytest.raises(ConfigError, match="name at least one run"):
        compare([])
    with pytest.raises(ConfigError, match=r"did you mean .*l0-s0\?"):
        compare([grid["l0-s0"], grid["l0-s0"].parent])
    again = shutil.copytree(grid["l0-s0"], tmp_path / "again")
    with pytest.raises(ConfigError, match="the same configuration and seed"):
        compare([grid["l0-s0"], again, grid["l5-s0"]])


def test_a_start_model_that_is_not_shared(grid: dict[str, Path], edited: Callable[..., Path]) -> None:
    def other_start(record: dict[str, Any]) -> dict[str, Any]:
        record["model"]["hash"] = "0" * 64
        return record

    with pytest.raises(ConfigError, match=r"l0-s0 and .*edited started from different models"):
        compare([grid["l0-s0"], edited("l5-s0", "run.json", other_start)], "start")
    model = evaluated(grid["l0-s0"] / "eval" / "before", edited)
    with pytest.raises(ConfigError, match="model does not record one"):
        compare([grid["l0-s0"], model], "start")


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
    assert any(
        "trained with different settings: train.learning_rate is 0.001 (orpo), 1e-06 (dpo)" in note
        for note in found.notes
    )
