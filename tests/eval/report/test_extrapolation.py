"""``align run --dry-run --measure``: what a trial comes to, and that it leaves nothing behind."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from alignkit import Settings, Suite, SuiteResult, Target, settings
from alignkit.__main__ import main
from alignkit.config import RunConfig
from alignkit.runs.prepare import prepare
from alignkit_eval.report.extrapolation import Measured, Work, duration, evaluations, extrapolate, seconds_per_step
from alignkit_eval.report.trial import _time_suite, _trial_plan

QUICK = [
    "--set",
    "train.max_steps=2",
    "--set",
    "data.limit=200",
    "--set",
    "data.eval_limit=20",
    "--set",
    "eval.suites=prefs",
    "--set",
    "eval.samples=0",
    "--set",
    "run.plots=false",
]


def test_time_and_price_of_the_whole_run() -> None:
    measured = Measured([9.0, 2.0, 4.0], memory=1.5, suites={"prefs": 30.0, "kl": 60.0}, held_out=10.0, reference=240.0)
    work = Work(
        steps=1000,
        suites={"prefs": 5, "kl": 2},
        held_out=3,
        tokens_per_step=6000,
        processes=2,
        price_per_hour=1.8,
    )
    lines = extrapolate(measured, work)
    assert lines["time per step"] == "3 s, measured in 3 steps"
    assert lines["speed"] == "2,000 tokens per second"
    # 1000 * 3 + 5 * 30 + 2 * 60 + 3 * 10 + 240 = 3540 s
    assert lines["whole run"] == "about 59 min: training 50 min, evaluation 300 s, reference 240 s"
    assert lines["price"] == "3.54: 1.97 hours of a process at 1.8"


def test_without_a_price_none_is_shown() -> None:
    assert "price" not in extrapolate(Measured([1.0], 1.0, not_measured=["lm-eval"]), Work(10))
    assert "lm-eval" in extrapolate(Measured([1.0], 1.0, not_measured=["lm-eval"]), Work(10))["whole run"]


def test_a_rollout_is_shared_by_its_steps() -> None:
    assert seconds_per_step([10.0, 2.0, 4.0], 1) == 3.0
    assert seconds_per_step([10.0, 2.0, 4.0], 4) == (10 + 3 * 3) / 4
    assert seconds_per_step([5.0], 1) == 5.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (59, "59 s"), (599, "599 s"), (600, "10 min"), (7500, "2 h 5 min"), (3599, "1 h 0 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("strategy", "every", "expected"), [("no", 10, 0), ("steps", 10, 10), ("steps", 0.25, 4), ("epoch", None, 0)]
)
def test_evaluations_are_counted(strategy: str, every: float | None, expected: int) -> None:
    config = RunConfig(method="orpo", eval={"suites": ["prefs", "kl"], "during": {"prefs": 30, "perplexity": 50}})  # type: ignore[arg-type]
    arguments: Any = SimpleNamespace(
        eval_strategy=strategy, eval_steps=every, logging_steps=10, num_train_epochs=3, max_steps=100
    )
    counts, held_out = evaluations(config, arguments, 100)
    assert counts == {"prefs": 5, "kl": 2, "perplexity": 2}
    assert held_out == expected


class CountingSettings(Settings):
    """Limits as suites have them, or none."""


class LimitedSettings(CountingSettings):
    prompts: int = 60
    calibration_pairs: int = 100


class Counting(Suite[CountingSettings]):
    """A suite that takes a second for each row it uses, and five to begin with."""

    name, settings_type = "counting", CountingSettings
    clock: ClassVar[dict[str, float]] = {"now": 0.0}
    begun = own = False

    def evaluate(self, target: Target) -> SuiteResult:
        rows = 30 if self.own else len(target.rows("completion"))
        limits = self.settings.model_dump().values()
        self.clock["now"] += sum(min(limit, rows) for limit in limits) if limits else rows
        self.clock["now"] += 0 if self.begun else 5
        self.begun = True
        return SuiteResult("counting", 0, 0, {}, [])


def test_a_suite_that_uses_a_limited_number_of_rows_takes_no_longer_with_more_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings.resolve(method="sft", sets=["data.limit=8", "data.eval_limit=80", "eval.suites=[]"]).config
    plan = _trial_plan(config, tmp_path)
    run = prepare(plan)
    monkeypatch.setattr("time.perf_counter", lambda: Counting.clock["now"])
    limited = Counting(LimitedSettings())
    assert _time_suite("counting", limited, plan, run) == pytest.approx(60 + 80, rel=0.05)
    assert limited.settings == LimitedSettings()
    each = Counting(CountingSettings())
    each.begun = True
    assert _time_suite("counting", each, plan, run) == pytest.approx(80)
    own = Counting(CountingSettings())  # such as the rows of a benchmark: the held-out rows are not theirs
    own.own = own.begun = True
    assert _time_suite("counting", own, plan, run) == 30


@pytest.mark.slow
def test_a_trial_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    price = ["--set", "run.price_per_hour=2"]
    assert main(["run", "--method", "dpo", *QUICK, *price, "--dry-run", "--measure"]) == 0
    words = capsys.readouterr().err
    for line in ("measured memory", "time per step", "tokens per second", "whole run", "price", "reference"):
        assert line in words
    assert list(tmp_path.iterdir()) == []
    assert main(["run", "--method", "dpo", *QUICK, *price, "--name", "after"]) == 0
    monkeypatch.chdir(tmp_path.parent)
    assert main(["run", "--method", "dpo", *QUICK, "--output", str(tmp_path / "other"), "--name", "alone"]) == 0
    first, second = (
        hashlib.sha256((tmp_path / run / "model/model.safetensors").read_bytes()).hexdigest()
        for run in ("runs/after", "other/alone")
    )
    assert first == second


def test_measure_belongs_to_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--method", "orpo", "--measure"]) == 2
    assert "--measure belongs to --dry-run" in capsys.readouterr().err
