"""Early stopping and the best model, by a held-out loss or by any suite's metric, also over a resume."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit import RunConfig, settings
from alignkit.errors import AlignError, ConfigError
from alignkit.runs.prepare import plan_run
from alignkit.runs.record import callbacks_record
from alignkit.settings.training_arguments import training_arguments
from alignkit_eval.best import WatchBest, best_of

from tests.helpers.engine import Recorder, StopAt, build_trainer, configuration, random_pairs, weights
from tests.helpers.runs import short_run

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Checkpoints are synced to disk: in memory that costs nothing."""


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


VALUES = [0.5, 0.7, 0.6, 0.7, 0.9]
"""A metric at steps 1, 2, ...; the best of the first four is at step 2."""


class Scripted:
    """A suite whose metric follows a script."""

    def __init__(self, *, higher: bool | None = True) -> None:
        self.higher, self.trainer = higher, None

    def __call__(self) -> tuple[dict[str, float], dict[str, bool]]:
        step = 0 if self.trainer is None else self.trainer.state.global_step  # type: ignore[unreachable]
        value = VALUES[max(step - 1, 0)] * (1 if self.higher is not False else -1)
        return {"suite/metric": value}, {} if self.higher is None else {"suite/metric": self.higher}


def trainer_with(
    output: Path, suite: Scripted, *more: Any, patience: int | None = 2, metric: str = "suite/metric", **train: Any
) -> tuple[Any, Recorder, list[Any]]:
    written: list[Any] = []
    watch = WatchBest(metric, suite, written.append, open_direction=True, patience=patience, threshold=0.0)
    given = {"max_steps": 5, "eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": metric}
    rows, held_out = random_pairs(16, longest=6), random_pairs(3, seed=1, longest=6)
    config = configuration("orpo", **{**given, "save_strategy": "steps", "learning_rate": 0.1, **train})
    trainer, seen = build_trainer(config, output, rows, held_out=held_out, callbacks=[*more, watch])
    suite.trainer = trainer
    return trainer, seen, written


def test_the_best_evaluation_and_the_wait_after_it() -> None:
    assert best_of([], greater=True) is None
    assert best_of([(1, 3.0), (2, 2.0), (3, 2.5)], greater=False) == (2, 2.0, 1)
    assert best_of([(1, 1.0), (2, 1.05)], greater=True, threshold=0.1) == (2, 1.05, 1)
    assert best_of([(1, 1.0), (2, float("nan")), (3, 2.0)], greater=True) == (3, 2.0, 0)


@pytest.mark.parametrize("higher", [True, False])
def test_training_stops_and_the_best_model_is_loaded(memory: Path, higher: bool) -> None:
    trainer, _, written = trainer_with(memory, Scripted(higher=higher))
    trainer.train()
    assert trainer.state.global_step == 4, "two evaluations after the best one"
    found = callbacks_record(trainer)
    value = 0.7 if higher else -0.7
    assert found["best"] == {"metric": "suite/metric", "value": value, "step": 2, "saved": True}
    assert found["stopped"] == f"no better suite/metric in 2 evaluations: best {value} at step 2"
    assert [record["step"] for record in written] == [1, 2, 3, 4]
    best, _, _ = trainer_with(memory / "other", Scripted(higher=higher), max_steps=2, lr_scheduler_type="constant")
    best.train()
    assert torch.equal(weights(trainer.model), weights(best.model))


@pytest.mark.parametrize("stop", [1, 3, 4], ids=["before the best", "after it", "when it has stopped"])
def test_a_resumed_run_stops_where_the_whole_one_does(memory: Path, stop: int) -> None:
    whole, _, _ = trainer_with(memory / "whole", Scripted())
    whole.train()
    cut, _, _ = trainer_with(memory / "cut", Scripted(), StopAt(stop))
    cut.train()
    shutil.move(memory / "cut", memory / "moved")
    again, seen, _ = trainer_with(memory / "moved", Scripted())
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert callbacks_record(again) == callbacks_record(whole)
    assert torch.equal(weights(again.model), weights(whole.model))
    assert len(seen.losses()) == 4 - stop


def test_what_the_suite_does_not_say_is_refused_before_the_first_step(memory: Path) -> None:
    trainer, seen, _ = trainer_with(memory, Scripted(), metric="suite/metrics")
    with pytest.raises(ConfigError, match=r'no evaluation gives suite/metrics, did you mean "suite/metric"\?'):
        trainer.train()
    trainer, _, _ = trainer_with(memory, Scripted(higher=None))
    with pytest.raises(ConfigError, match=r"does not say whether a higher suite/metric is better: set train.greater"):
        trainer.train()
    assert not seen.losses()


def plan(**train: Any) -> Any:
    config = {"method": "orpo", "train": train, "eval": {"during": {"perplexity": 7}}}
    return plan_run(settings.check_config(RunConfig.model_validate(config)))


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"early_stopping_patience": 2}, {"metric_for_best_model": "loss", "greater_is_better": False}),
        ({"stop_on": "eval_loss/nll"}, {"greater_is_better": False, "eval_steps": 0.1, "save_steps": 0.1}),
        ({"stop_on": "eval_rewards/margins"}, {"greater_is_better": True}),
        ({"stop_on": "perplexity/bits_per_byte"}, {"eval_steps": 7, "save_steps": 7}),
        ({"load_best_model_at_end": True, "eval_strategy": "epoch"}, {"save_strategy": "epoch"}),
        ({"early_stopping_patience": 2, "save_strategy": "epoch"}, {"eval_strategy": "epoch"}),
        ({"stop_on": "eval_loss", "load_best_model_at_end": False}, {"load_best_model_at_end": False}),
        ({"stop_on": "eval_loss", "eval_steps": 5, "save_steps": 10}, {"eval_steps": 5, "save_steps": 10}),
    ],
    ids=str,
)
def test_the_best_model_is_found_by_evaluations(train: dict[str, Any], expected: dict[str, Any]) -> None:
    arguments = plan(**train).arguments
    assert {key: getattr(arguments, key) for key in expected} == expected
    assert str(arguments.eval_strategy.value) != "no"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"stop_on": "prefz/accuracy_sum"}, 'unknown suite "prefz", did you mean "prefs"?'),
        ({"stop_on": "eval_loss", "metric_for_best_model": "prefs/ece"}, "train.stop_on (eval_loss) and"),
        ({"early_stopping_patience": 2, "eval_strategy": "no"}, "train.eval_strategy is no, but the best model"),
        (
            {"stop_on": "eval_loss", "eval_strategy": "epoch", "save_strategy": "steps"},
            "train.save_strategy (steps) must equal",
        ),
        ({"stop_on": "eval_loss", "eval_steps": 5, "save_steps": 7}, "which is not a round multiple of 5"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_at_the_start(train: dict[str, Any], message: str) -> None:
    with pytest.raises(AlignError) as caught:
        plan(**train)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_watched_suite_is_opened_although_it_is_in_no_list() -> None:
    config = settings.check_config(RunConfig(method="orpo", train={"stop_on": "kl/kl"}, eval={"suites": []}))
    found = plan_run(config)
    assert list(found.suites) == ["kl"]
    assert training_arguments(config, Path("unused"))[0].metric_for_best_model == "kl/kl"


def test_a_run_stops_on_a_suite_s_metric_and_records_why(tmp_path: Path) -> None:
    train = {"stop_on": "perplexity/perplexity", "learning_rate": 0.03, "eval_steps": 2, "max_steps": 12}
    train["per_device_train_batch_size"] = 16
    during = {"suites": ["perplexity"], "before": False, "samples": 0, "settings": {}}
    run = short_run(tmp_path, "run", train=train, data={"limit": 90}, eval=during)
    values = [record["perplexity/perplexity"] for record in run.metrics if "perplexity/perplexity" in record]
    *falling, best, last = values
    assert falling == sorted(falling, reverse=True)
    assert last > best
    step = 2 * len(values)
    assert run.record["steps"] == step
    assert run.evaluation["after"]["perplexity"]["perplexity"]["value"] == pytest.approx(best)
    assert f"stopped early at step {step}: no better perplexity" in (run.directory / "train.log").read_text()
    card = (run.directory / "model" / "README.md").read_text()
    assert "Training was stopped early: no better perplexity/perplexity in 1 evaluation" in card
    assert f"This is the model of step {step - 2}, the best by perplexity/perplexity." in card
