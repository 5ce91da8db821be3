"""TRL's trainers through align_build_trainer: rows, order and loss equal those of alignkit's engine; resume works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alignkit import RunConfig, settings
from alignkit.errors import ConfigError, PluginError
from alignkit.runs import api
from alignkit.runs.parts import engine_parts
from alignkit.runs.prepare import plan_run, prepare
from alignkit_trl.bridge import RunMetrics
from transformers import TrainerState

from tests.helpers.runs import saved_weights, short_run

QUICK: dict[str, Any] = {
    "eval": {"samples": 0, "suites": ["prefs"]},
    "run": {"plots": False},
    "data": {"limit": 120},
}


def losses(run: api.Run) -> list[float]:
    return [record["loss"] for record in run.metrics if "loss" in record]


@pytest.mark.slow
def test_orpo_s_curve_is_trl_s(tmp_path: Path) -> None:
    train = {"max_steps": 20, "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-3}
    ours = short_run(tmp_path, "ours", {"name": "orpo", "convention": "trl", "lambda": 0.1}, train=train, **QUICK)
    theirs = short_run(tmp_path, "theirs", {"name": "trl-orpo", "beta": 0.1}, train=train, **QUICK)
    assert theirs.record["engine"] == "external"
    assert len(losses(ours)) == 20
    assert losses(theirs) == pytest.approx(losses(ours), abs=1e-3)
    assert theirs.record["train"]["tokens"] > ours.record["train"]["tokens"], "TRL does not share prompts"
    assert theirs.record["train"]["flops"] > 0
    from alignkit_eval import compare

    found = compare([ours.directory, theirs.directory])
    assert {arm.name for arm in found.arms} == {"orpo", "trl-orpo"}
    assert all(arm.cost.seconds and arm.cost.tokens for arm in found.arms)


def trainer_of(method: str, tmp_path: Path, **train: Any) -> Any:
    config = settings.check_config(
        RunConfig.model_validate({"method": method, **QUICK, "run": {"output": str(tmp_path)}, "train": train})
    )
    plan = plan_run(config)
    plan.arguments.output_dir = str(tmp_path)
    prepared = prepare(plan)
    parts = engine_parts(plan, prepared, {}, prepared.order, [])
    return plan.session.build_trainer(parts), parts


@pytest.mark.parametrize("method", ["trl-orpo", "trl-dpo", "trl-sft"])
def test_trl_reads_the_same_tokens(method: str, tmp_path: Path) -> None:
    """Tokens are equal row by row with the end token; the begin token, added by the demo's tokenizer, only for orpo."""
    trainer, parts = trainer_of(method, tmp_path)
    rows = trainer.train_dataset
    assert len(rows) == len(parts.train)
    for example, row in zip(parts.train, rows, strict=True):
        first = 0 if method == "trl-orpo" else 1  # the others apply the chat template without a begin token
        wholes = [[*example.prompt[first:], *completion] for completion in example.completions]
        match method:
            case "trl-orpo":
                theirs = [row["chosen_input_ids"], row["rejected_input_ids"]]
            case "trl-dpo":
                theirs = [row["prompt_ids"] + row["chosen_ids"], row["prompt_ids"] + row["rejected_ids"]]
            case _:
                theirs = [row["input_ids"]]
        assert theirs == wholes


def test_every_epoch_has_the_engine_s_order(tmp_path: Path) -> None:
    trainer, parts = trainer_of("trl-sft", tmp_path, num_train_epochs=2, save_strategy="no", eval_strategy="no")
    collate, seen = trainer.data_collator, []

    def watched(rows: list[dict[str, Any]]) -> Any:
        seen.extend(row["input_ids"] for row in rows)
        return collate(rows)

    trainer.data_collator = watched
    trainer.train()
    first, second = parts.rows_of_epoch(0), parts.rows_of_epoch(1)
    assert first != second
    assert seen == [trainer.train_dataset[row]["input_ids"] for row in first + second]


def test_rows_in_another_order_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = trainer_of("trl-sft", tmp_path)
    monkeypatch.setattr("accelerate.data_loader.DataLoaderShard.set_sampler", lambda loader, sampler: None)
    with pytest.raises(PluginError, match="SFTTrainer does not read its rows in alignkit's order"):
        trainer.get_train_dataloader()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["trl-kto", "trl-grpo", "trl-rloo"])
def test_the_others_train(method: str, tmp_path: Path) -> None:
    train = {"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 8}  # of them, GRPO's groups are made
    run = short_run(tmp_path, "run", method, train=train, **QUICK)
    assert run.record["status"] == "finished"
    assert run.record["steps"] == 2
    assert run.record["train"]["tokens"] > 0
    assert "accuracy_sum" in run.evaluation["after"]["prefs"]


@pytest.mark.slow
def test_a_trl_run_resumes(tmp_path: Path) -> None:
    train = {"max_steps": 4, "logging_steps": 1, "save_strategy": "steps", "save_steps": 2}
    whole = short_run(tmp_path, "whole", "trl-dpo", train=train, **QUICK)
    cut = short_run(tmp_path, "cut", "trl-dpo", train=train, **QUICK)
    import shutil

    shutil.rmtree(cut.directory / "checkpoints" / "checkpoint-4")
    shutil.rmtree(cut.directory / "model")
    record = json.loads((cut.directory / "run.json").read_text())
    (cut.directory / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    again = api.resume(cut.directory, quiet=True)
    assert saved_weights(again.directory) == saved_weights(whole.directory)


def test_rewards_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method trl-grpo needs a reward"):
        short_run(tmp_path, "run", {"name": "trl-grpo", "reward": []}, **QUICK)


class CountedSteps:
    """A run's parts, which note the steps whose rows are asked for."""

    def __init__(self, parts: Any) -> None:
        self.parts, self.asked = parts, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parts, name)

    def rows_of_step(self, step: int, total: int) -> list[int]:
        self.asked.append(step)
        rows: list[int] = self.parts.rows_of_step(step, total)
        return rows


def test_every_step_s_tokens_are_counted_once_however_often_it_logs(tmp_path: Path) -> None:
    trainer, parts = trainer_of("trl-dpo", tmp_path)
    counted = CountedSteps(parts)
    metrics = RunMetrics(counted, lambda: 0.0)  # type: ignore[arg-type]
    logged = []
    for step in (1, 2, 2, 5, 6):
        logs = {"loss": 1.0}
        metrics.on_log(trainer.args, TrainerState(global_step=step, max_steps=6), None, logs=logs)
        logged.append(logs["tokens"])
    assert counted.asked == list(range(6))
    rows = [[parts.train[row] for row in parts.rows_of_step(step, 6)] for step in range(6)]
    sizes = [sum(len(row.prompt) + len(c) for row in step for c in row.completions) for step in rows]
    assert logged == [sum(sizes[:step]) for step in (1, 2, 2, 5, 6)]
