"""Cross-validated arms: every item scored by the model that did not train on it, all items compared at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignkit.demo import data_path
from alignkit.errors import ConfigError
from alignkit_eval.comparison.compare import compare
from alignkit_eval.sweeps.sweep import sweep

from tests.helpers.runs import short_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[float, int], Path]:
    """ORPO with two lambdas on three folds of the demo's first rows."""
    output = tmp_path_factory.mktemp("runs")
    texts = data_path("neutral").read_text().splitlines(keepends=True)[:6]
    (output / "texts.jsonl").write_text("".join(texts))
    sections: dict[str, Any] = {
        "train": {"max_steps": 3, "save_strategy": "no"},
        "eval": {"samples": 0, "settings": {"perplexity": {"text": str(output / "texts.jsonl")}}},
    }
    return {
        (strength, fold): short_run(
            output,
            f"l{strength:g}-f{fold}",
            {"name": "orpo", "lambda": strength},
            data={"folds": 3, "fold": fold, "limit": 150, "eval_limit": None},
            run={"plots": False},
            **sections,
        ).directory
        for strength in (0.0, 5.0)
        for fold in range(3)
    }


def items(run: Path, suite: str = "prefs") -> dict[str, Any]:
    lines = (run / "eval" / f"{suite}.items.jsonl").read_text().splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def test_folds_are_one_arm_over_all_items(runs: dict[tuple[float, int], Path]) -> None:
    found = compare(list(runs.values()))
    assert [arm.name for arm in found.arms] == ["orpo lambda=0.0", "orpo lambda=5.0"]
    assert [arm.seeds for arm in found.arms] == [(0,), (0,)]
    merged = [{k: v for f in range(3) for k, v in items(runs[strength, f]).items()} for strength in (0.0, 5.0)]
    assert len(merged[0]) == 150, "every row is held out once"
    (contrast,) = [c for c in found.contrasts if c.metric == "accuracy_sum"]
    assert contrast.n == 150
    difference = [merged[1][name]["credit_sum"] - merged[0][name]["credit_sum"] for name in merged[0]]
    assert contrast.diff == pytest.approx(np.mean(difference))
    accuracy = found.arms[1].metrics["prefs"]["accuracy_sum"].value
    assert accuracy == pytest.approx(np.mean([row["credit_sum"] for row in merged[1].values()]))
    assert any("did not train on it (3 folds" in note for note in found.notes)


def test_texts_that_every_fold_was_asked_count_with_their_mean(runs: dict[tuple[float, int], Path]) -> None:
    found = compare(list(runs.values()))
    texts = [items(runs[5.0, fold], "perplexity") for fold in range(3)]
    assert texts[0].keys() == texts[1].keys()
    nll = sum(np.mean([text[name]["nll"] for text in texts]) for name in texts[0])
    tokens = sum(row["tokens"] for row in texts[0].values())
    assert found.arms[1].metrics["perplexity"]["perplexity"].value == pytest.approx(np.exp(nll / tokens))


def test_against_the_start_and_with_any_fold_as_the_baseline(runs: dict[tuple[float, int], Path]) -> None:
    start = compare(list(runs.values()), "start")
    assert start.baseline == "start"
    assert {c.n for c in start.contrasts if c.metric == "accuracy_sum"} == {150}
    assert compare(list(runs.values()), runs[5.0, 2]).baseline == "orpo lambda=5.0"


def test_one_fold_of_each_is_compared_as_it_is(runs: dict[tuple[float, int], Path]) -> None:
    found = compare([runs[0.0, 1], runs[5.0, 1]])
    assert found.contrasts[0].n == len(items(runs[0.0, 1])) < 150


def test_a_missing_fold_is_said(runs: dict[tuple[float, int], Path]) -> None:
    left = [path for key, path in runs.items() if key != (5.0, 1)]
    with pytest.raises(ConfigError, match="is one of 3 folds, and the run of fold 1 is not among the runs to compare"):
        compare(left)


@pytest.mark.slow
def test_a_sweep_over_folds(tmp_path: Path) -> None:
    sets = ["data.folds=2", "data.limit=60", "train.max_steps=3", "eval.samples=0", "eval.suites=prefs"]
    sets += ["train.per_device_train_batch_size=4", "run.plots=false"]
    done = sweep(method="orpo", over={"lambda": [0, 5], "data.fold": [0, 1]}, sets=sets, output=tmp_path)
    assert len(done.cells) == 4
    assert done.comparison is not None
    assert {c.n for c in done.comparison.contrasts} == {60}
    assert (done.directory / "report.html").is_file()
