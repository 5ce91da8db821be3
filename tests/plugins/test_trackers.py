"""Trackers: what they keep equals the run's own files, a resumed run continues the same one, and errors cost no run."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from alignkit import Estimate, RunConfig, settings
from alignkit.errors import ConfigError, RunFailedError
from alignkit.rundir.metrics import MetricsLog
from alignkit.runs.prepare import plan_run
from alignkit.settings.training_arguments import training_arguments
from alignkit_eval.comparison.result import Arm, Comparison, ContrastResult, Cost
from alignkit_eval.report.tracked import track_comparison
from alignkit_eval.sweeps.sweep import Sweep, failure
from alignkit_trackers import Tracked, Tracker
from alignkit_trackers.content import group_of, markdown
from alignkit_trackers.tensorboard import TensorBoard

from tests.helpers.runs import short_run
from tests.helpers.trackers import Kept, assert_same, expected, markdown_rows, read_tensorboard, replayed

pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps, recorded by TensorBoard."""
    return short_run(
        tmp_path_factory.mktemp("tracked"),
        "named",
        {"name": "orpo", "lambda": 0.3},
        train={"report_to": "tensorboard", "logging_steps": 1},
        eval={"suites": ["prefs"], "during": {"prefs": 2}, "samples": 2},
        run={"plots": True},
    ).directory


def test_what_is_kept_equals_the_files_of_the_run(tracked: Path) -> None:
    kept, wanted = read_tensorboard(tracked / "tensorboard"), expected(tracked)
    assert_same(kept, wanted)
    assert kept.status == "finished"
    assert kept.config["method"]["lambda"] == 0.3
    assert {"before/prefs/accuracy_sum/low", "after/prefs/accuracy_sum/high", "prefs/accuracy_sum/low", "loss"} <= {
        *kept.scalars
    }
    assert kept.plots
    assert len(kept.tables["samples"]) == 2


@pytest.mark.parametrize("cut", [1, 3])
def test_a_resumed_run_continues_the_same_one(tracked: Path, tmp_path: Path, cut: int) -> None:
    run = replayed(tracked, tmp_path, TensorBoard, cut)
    assert_same(read_tensorboard(run / "tensorboard"), expected(run))


def test_a_new_run_in_the_directory_of_a_failed_one_is_a_new_tracked_run(tracked: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tracked, run)
    stored = json.loads((run / "trackers.json").read_text())
    record = json.loads((run / "run.json").read_text()) | {"started": 1.0}
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.jsonl").unlink()
    tracker = TensorBoard()
    tracker.align_run_started(RunConfig.model_validate(record["config"]), run)
    tracker.align_run_finished({"status": "failed"}, run)
    assert (
        json.loads((run / "trackers.json").read_text())["tensorboard"]["started"]
        == 1.0
        != stored["tensorboard"]["started"]
    )
    kept = read_tensorboard(run / "tensorboard")
    assert (kept.status, "loss" in kept.scalars) == ("failed", False)


def test_transformers_own_callbacks_are_off_for_trackers_and_on_for_others() -> None:
    config = settings.check_config(
        RunConfig.model_validate({"method": "orpo", "train": {"report_to": "tensorboard, swanlab"}})
    )
    assert training_arguments(config, Path("unused"))[0].report_to == ["swanlab"]


def test_trackers_are_named_one_by_one() -> None:
    config = settings.check_config(RunConfig.model_validate({"method": "orpo", "train": {"report_to": "all"}}))
    with pytest.raises(ConfigError, match=r"train\.report_to: all depends on the machine: name the trackers"):
        plan_run(config)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio", "aim"])
def test_a_missing_package_is_named_with_its_command_before_anything_is_loaded(name: str) -> None:
    config = RunConfig.model_validate(
        {"method": "trl-dpo", "model": "no/model", "train": {"report_to": ["tensorboard", name]}}
    )
    with pytest.raises(ConfigError, match=f"train.report_to: {name} needs a package: pip install {name}"):
        plan_run(settings.check_config(config))


def test_a_model_is_not_promised_to_a_tracker_that_keeps_none() -> None:
    values = {"method": "orpo", "train": {"report_to": "tensorboard"}, "tracker": {"model": True}}
    with pytest.raises(ConfigError, match=r"tracker\.model has no effect without a tracker that keeps models"):
        plan_run(settings.check_config(RunConfig.model_validate(values)))


class Away(Tracker):
    """A tracker that is lost at a step."""

    name, packages, project_variable = "away", {}, "AWAY_PROJECT"
    said: list[str] = []

    def start(self, run: Tracked) -> str:
        self.run, self.said = run, ["start"]
        return "id"

    def config(self, values: Mapping[str, Any]) -> None:
        if values["run"]["project"] == "closed":
            raise ConnectionError("no such project")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if step >= 2:
            raise ConnectionError("the server is away")
        self.said.append(f"step {step}")

    def table(self, name: str, rows: Any) -> None:
        self.said.append(name)

    plot = document = table

    def model(self, directory: Path) -> None:
        self.said.append("model")

    def finish(self, status: str) -> None:
        self.said.append(status)


def test_an_error_while_training_is_a_warning_and_fails_the_command_at_the_end(
    tracked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tracked, run)
    record = json.loads((run / "run.json").read_text())
    tracker = Away()
    tracker.align_run_started(RunConfig.model_validate(record["config"]), run)
    for line in MetricsLog(run / "metrics.jsonl").read():
        tracker.align_log(line)
    with pytest.raises(
        RunFailedError, match=r"away did not record everything \(step 2: .*the server is away\); the run"
    ):
        tracker.align_run_finished(record, run)
    assert tracker.said == ["start", "step 0", "step 1", "failed"]
    warnings = [line for line in (run / "train.log").read_text().splitlines() if "the server is away" in line]
    assert len(warnings) == 1
    assert "training goes on" in capsys.readouterr().err


def test_a_tracker_that_cannot_start_is_refused(tracked: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tracked, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["config"]["run"]["project"] = "closed"
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"train\.report_to: away could not start: .*no such project"):
        Away().align_run_started(RunConfig.model_validate(record["config"]), run)


@pytest.mark.parametrize(
    ("run", "train", "variable", "project"),
    [
        ({"project": "a"}, {"project": "b"}, "c", "a"),
        ({}, {"project": "b"}, "c", "b"),
        ({}, {}, "c", "c"),
        ({}, {}, "", "alignkit"),
    ],
)
def test_the_project_is_the_most_specific_one(
    monkeypatch: pytest.MonkeyPatch, run: dict[str, Any], train: dict[str, Any], variable: str, project: str
) -> None:
    monkeypatch.setenv("AWAY_PROJECT", variable)
    config = RunConfig.model_validate({"method": "orpo", "run": run, "train": train})
    assert Away().project_of(config) == project


def test_runs_of_a_sweep_are_grouped_by_its_name(tmp_path: Path) -> None:
    arm = tmp_path / "lambda" / "arm-0"
    arm.mkdir(parents=True)
    assert group_of(arm) is None
    (tmp_path / "lambda" / "sweep.yaml").touch()
    assert group_of(arm) == "lambda"


def test_what_is_recorded_is_kept_if_the_process_is_killed(tracked: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tracked, run, ignore=shutil.ignore_patterns("tensorboard", "trackers.json"))
    config, lines = json.loads((run / "run.json").read_text())["config"], MetricsLog(run / "metrics.jsonl").read()
    if not (process := os.fork()):
        try:
            tracker = TensorBoard()
            tracker.align_run_started(RunConfig.model_validate(config), run)
            for line in lines:
                tracker.align_log(line)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)  # at once: the writer has a thread of its own
    os.waitpid(process, 0)
    kept = read_tensorboard(run / "tensorboard").scalars
    wanted = expected(tracked).scalars
    assert kept == {name: values for name, values in wanted.items() if not name.startswith("after/")}


def comparison_of(verdict: str) -> Comparison:
    metrics = {"prefs": {"accuracy": Estimate(0.5, 0.4, 0.6)}}
    arms = [Arm(name, (Path(name),), (0,), {}, Cost(), metrics) for name in ("a", "b")]
    one = ContrastResult(
        "b", "prefs", "accuracy", 0.1, -0.1, 0.3, 0.4, 0.8, 20, 20, 1, 0.2, True, "cluster sign-flip", "a"
    )
    return Comparison("a", tuple(arms), (one,), verdict, None, notes=("one seed",))


def test_the_comparison_of_a_sweep_is_a_run_of_its_group(
    tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "lambdas"
    sweep.mkdir()
    (sweep / "sweep.yaml").touch()
    begun: list[Tracked] = []
    start = TensorBoard.start
    monkeypatch.setattr(TensorBoard, "start", lambda self, run: begun.append(run) or start(self, run))

    def recorded(verdict: str) -> Kept:
        assert (
            track_comparison(sweep, [tracked], {"sweep": {"over": "lambda"}}, comparison_of(verdict), ["stopped"]) == []
        )
        return read_tensorboard(sweep / "tensorboard")

    kept = recorded("b is better")
    notes = [{"kind": "note", "text": text} for text in ("one seed", "stopped")]
    assert kept.tables["verdict"] == [{"kind": "verdict", "text": "b is better"}, *notes]
    assert [(row["arm"], row["value"], row["low"]) for row in kept.tables["arms"]] == [("a", 0.5, 0.4), ("b", 0.5, 0.4)]
    assert [(row["difference"], row["p"], row["outcome"]) for row in kept.tables["differences"]] == [
        (0.1, 0.8, "undecided")
    ]
    assert (kept.config, kept.status) == ({"sweep": {"over": "lambda"}}, "finished")
    recorded("b is better")  # the same: not again
    assert recorded("b is worse").tables["verdict"][0]["text"] == "b is worse"
    assert [(run.name, run.group, run.id, run.step) for run in begun] == [
        ("lambdas-comparison", "lambdas", None, -1),
        ("lambdas-comparison", "lambdas", "tensorboard", 1),
    ]


def test_a_comparison_that_a_tracker_does_not_record_fails_the_sweep(
    tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TensorBoard, "table", lambda *_: 1 / 0)
    (lost,) = track_comparison(tmp_path, [tracked], {}, comparison_of("b is better"))
    assert "train.report_to: tensorboard did not record the comparison" in lost
    error = failure(Sweep(tmp_path, (), None, untracked=(lost,)))
    assert "the sweep itself is whole" in str(error)
    assert failure(Sweep(tmp_path, (), None)) is None


def test_tables_in_markdown_keep_any_text() -> None:
    rows = [
        {"prompt": "a | b \\ c\nd", "after": "<br>x", "change": None},
        {"prompt": "| |", "after": "y", "change": 0.1},
    ]
    read = markdown_rows(markdown(rows))
    assert read[1] == rows[1]
    assert read[0]["prompt"] == rows[0]["prompt"]
