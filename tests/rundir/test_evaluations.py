"""Evaluation results and the metrics log are read as they were written, also after a crash."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from alignkit import Contrast, Estimate, SuiteResult
from alignkit.errors import CheckpointError, ConfigError
from alignkit.rundir.evaluations import read_evaluation, write_evaluation
from alignkit.rundir.metrics import MetricsLog

ITEMS = [{"id": "a", "cluster": "x"}, {"id": "b", "cluster": "x"}]


def test_an_evaluation_comes_back_as_it_was(tmp_path: Path) -> None:
    metrics = {"accuracy_sum": Estimate(0.5, 0.25, 0.75), "ece": Estimate(0.1), "odd": Estimate(math.inf)}
    result = SuiteResult("prefs", 2, 1, metrics, ITEMS, {"bins": 3})
    contrast = Contrast("accuracy_sum", "credit_sum", where={"task": "facts"}, verdict=("accuracy_mean",))
    result = replace(result, contrasts=[contrast], provenance={"weights": "abc"})
    path = write_evaluation(tmp_path / "eval", result, target="demo")
    assert list(json.loads(path.read_text())) == [
        "suite",
        "target",
        "n",
        "clusters",
        "metrics",
        "settings",
        "contrasts",
        "provenance",
        "left_out",
        "notes",
        "items_sha256",
        "checksum",
    ]
    back = read_evaluation(tmp_path / "eval", "prefs")
    assert (back.n, back.clusters, back.items, back.settings) == (2, 1, ITEMS, {"bins": 3})
    assert (back.contrasts, back.provenance) == ([contrast], {"weights": "abc"})
    assert {k: back.metrics[k] for k in ("accuracy_sum", "ece")} == {k: metrics[k] for k in ("accuracy_sum", "ece")}
    assert math.isnan(back.metrics["odd"].value)
    with pytest.raises(ConfigError, match="suite 'perplexity'"):
        read_evaluation(tmp_path / "eval", "perplexity")


def test_the_log_is_cut_back_to_a_step_and_continues(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.cut_back(0)  # nothing was logged yet
    for step in (5, 10, 15):
        log.append({"step": step, "loss": math.nan if step == 10 else 1.0})
    with log.path.open("a") as file:
        file.write('{"step": 20, "lo')  # killed in the middle of a line
    log.cut_back(10)
    log.append({"step": 11})
    assert log.read() == [{"step": 5, "loss": 1.0}, {"step": 10, "loss": None}, {"step": 11}]


def test_a_half_written_line_is_dropped_even_within_a_character(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    with log.path.open("ab") as file:
        file.write('{"step": 2, "é'.encode()[:-1])
    assert log.read() == [{"step": 1}]
    log.cut_back(2)
    assert log.path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(("line", "message"), [("{broken", "invalid JSON"), ("[1]", "expected a JSON object")])
def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(CheckpointError, match=rf"metrics\.jsonl:2: {message}"):
        MetricsLog(path).cut_back(3)
