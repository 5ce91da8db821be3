"""Every key of ``eval:`` and ``run:`` changes the run, or is refused: two runs, of which the second sets all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from alignkit import Run, settings
from alignkit.config import EvalConfig, RunSection, TrackerConfig
from alignkit.errors import PluginError
from alignkit.runs.prepare import plan_run

from tests.helpers.keys import keys_of
from tests.helpers.runs import saved_weights, short_run

SETTINGS = {"generate": {"prompts": 2, "max_new_tokens": 2}}
CHANGED: dict[str, dict[str, Any]] = {
    "eval": {
        "suites": ["generate"],
        "settings": SETTINGS,
        "during": {"prefs": 1},
        "before": False,
        "samples": 2,
        "sample_tokens": 2,
    },
    "run": {"seed": 1, "plots": False},
}


def result(run: Run, suite: str) -> dict[str, Any]:
    return dict(json.loads((run.directory / "eval" / f"{suite}.json").read_text()))


SEEN: dict[str, Callable[[Run], Any]] = {
    "eval.suites": lambda run: sorted(path.name for path in (run.directory / "eval").glob("*.json")),
    "eval.settings": lambda run: run.record["config"]["eval"]["settings"]["generate"],
    "eval.during": lambda run: [record["step"] for record in run.metrics if "prefs/accuracy_sum" in record],
    "eval.before": lambda run: (run.directory / "eval" / "before").is_dir(),
    "eval.samples": lambda run: len((run.directory / "samples.jsonl").read_text().splitlines()),
    "eval.sample_tokens": lambda run: (run.directory / "samples.jsonl").read_text().splitlines()[0],
    "run.output": lambda run: run.directory.parent,
    "run.name": lambda run: run.directory.name,
    "run.seed": lambda run: saved_weights(run.directory),
    "run.plots": lambda run: any((run.directory / "plots").glob("*.png")),
}
"""Key -> what it changes."""

ELSEWHERE = {
    **dict.fromkeys(("run.project", "tracker.model"), "a tracker has to be installed: tests/plugins/test_trackers.py"),
    "run.log_axes": "plots have another axis: tests/eval/report/test_curves.py",
    "run.services": "a service has to be installed: tests/testing",
    "run.engine": "an engine has to be installed: tests/engines/test_bigram.py",
    "run.pause_at": "a run pauses and is resumed: tests/training/test_pause.py",
    "run.price_per_hour": "a dry run that measures reads it: tests/eval/report/test_extrapolation.py",
    **dict.fromkeys(("run.processes", "run.nodes", "run.strategy"), "several processes: tests/runs/test_processes.py"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    few: dict[str, Any] = {"data": {"limit": 40, "eval_limit": 6}, "train": {"max_steps": 2, "logging_steps": 1}}
    plain = {"eval": {"suites": ["prefs"], "samples": 1}, "run": {"plots": True}}
    made = [tmp_path_factory.mktemp(name) for name in ("plain", "changed")]
    return [short_run(made[0], "plain", **few, **plain), short_run(made[1], "changed", **few, **CHANGED)]


def test_every_key_has_a_row() -> None:
    assert {*SEEN, *ELSEWHERE} == {
        *keys_of(EvalConfig, "eval."),
        *keys_of(RunSection, "run."),
        *keys_of(TrackerConfig, "tracker."),
    }
    set_there = {f"{section}.{key}" for section, keys in CHANGED.items() for key in keys}
    assert set_there | {"run.output", "run.name"} == {*SEEN}


@pytest.mark.parametrize("key", SEEN)
def test_the_key_changes_what_it_says(key: str, runs: list[Run]) -> None:
    plain, changed = map(SEEN[key], runs)
    assert plain != changed


def test_settings_reach_the_suite(runs: list[Run]) -> None:
    assert result(runs[1], "generate")["n"] == 2


def test_a_service_that_is_not_installed_is_refused() -> None:
    with pytest.raises(PluginError, match='unknown service "nope"'):
        plan_run(settings.resolve(method="orpo", sets=["run.services=nope"]).config)
