"""A run that pauses at planned shares of its steps ends at the weights of one that trains through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alignkit.errors import ConfigError
from alignkit.runs.api import resume
from alignkit_eval.during import PauseAt
from transformers import TrainerControl, TrainerState

from tests.helpers.forked import At
from tests.helpers.runs import align, records, saved_weights, short_run

STEPS: dict[str, Any] = {
    "max_steps": 6,
    "logging_steps": 1,
    "save_strategy": "no",
    "lr_scheduler_type": "cosine",
    "optim": "adamw_torch",
}


def record(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text()))


LIGHT = {"suites": ["prefs"], "before": False, "samples": 0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_run(tmp_path_factory.mktemp("whole"), "whole", train=STEPS, eval=LIGHT).directory


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in records(run) if "loss" in line]


def test_paused_and_resumed_equals_trained_through(whole: Path, tmp_path: Path) -> None:
    run = short_run(tmp_path, "run", train=STEPS, eval=LIGHT, run={"pause_at": [0.3, 0.5, 0.75]}).directory
    for step in (2, 3):
        found = record(run)
        assert (found["status"], found["paused"]) == ("paused", {"step": step, "steps": 6})
        assert (run / f"eval/step-{step}/prefs.items.jsonl").is_file()
        assert not (run / "model").exists()
        resume(run, sets=["run.pause_at=[]"] if step == 3 else [], quiet=True)
    found = record(run)
    assert (found["status"], found["paused"], found.get("changes", [])) == ("finished", None, [])
    assert saved_weights(run) == saved_weights(whole)
    assert losses(run) == losses(whole)


def test_a_run_killed_after_the_checkpoint_of_a_pause_is_evaluated_there_when_resumed(
    whole: Path, tmp_path: Path
) -> None:
    words = [str(whole / "run.yaml"), "--output", "runs", "--name", "run", "--set", "run.pause_at=[0.5]"]
    killed = align("run", *words, cwd=tmp_path, at=At("os.mkdir runs/run/eval/step-3"))
    run = tmp_path / "runs/run"
    assert killed.killed, killed.stderr
    assert (run / "checkpoints/checkpoint-3").is_dir()
    assert not (run / "eval/step-3").exists()
    done = align("resume", str(run), cwd=tmp_path)
    assert "paused at step 3 of 6; continue with: align resume" in done.stderr, done.stderr
    assert align("resume", str(run), cwd=tmp_path).returncode == 0
    assert saved_weights(run) == saved_weights(whole)


@pytest.mark.parametrize(
    ("shares", "due"), [([0.25, 0.5], {3, 5}), ([1 / 3], {3}), ([0.01, 0.1], {1}), ([0.99], set())]
)
def test_shares_become_steps(shares: list[float], due: set[int]) -> None:
    pause, found = PauseAt(shares, 0), set()
    for step in range(1, 10):
        control = TrainerControl()
        pause.on_step_end(None, TrainerState(global_step=step, max_steps=9), control)
        found |= {step} if control.should_training_stop and control.should_save else set()
    assert found == due


def test_a_share_that_is_none_is_refused(tmp_path: Path) -> None:
    done = align("run", "--method", "orpo", "--set", "run.pause_at=[1.5]", cwd=tmp_path)
    assert done.returncode == ConfigError.exit_code
    assert "run.pause_at" in done.stderr
    assert not (tmp_path / "runs").exists()
