"""A resumed run's settings are those of its record, or the change is named, accepted and recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from alignkit import settings
from alignkit.errors import AlignError, CheckpointError
from alignkit.rundir.directory import RunDir
from alignkit.rundir.evaluations import read_evaluation
from alignkit.runs import api
from alignkit_checks.changes import accepted_changes
from alignkit_commands.progress import lines, read_status

from tests.helpers.engine import build_trainer, configuration, random_pairs
from tests.helpers.runs import align, records, short_run

QUICK: dict[str, Any] = {"data": {"limit": 64, "eval_limit": 8}, "eval": {"suites": ["prefs"], "samples": 0}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = {"logging_steps": 1, "lr_scheduler_type": "linear", "learning_rate": 1e-3}
    return short_run(tmp_path_factory.mktemp("runs"), "whole", train=train, run={"plots": False}, **QUICK).directory


@pytest.fixture
def cut(whole: Path, tmp_path: Path) -> Path:
    """A run that was interrupted after the checkpoint of step 2."""
    directory = tmp_path / "cut"
    shutil.copytree(whole, directory)
    shutil.rmtree(directory / "model")
    shutil.rmtree(directory / "checkpoints" / "checkpoint-4")
    RunDir(directory).update_record(status="interrupted")
    return directory


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.learning_rate=1e-4", "train.learning_rate (0.001, now 0.0001)"),
        ("train.max_steps=6", "train.max_steps (4, now 6)"),
        ("train.per_device_train_batch_size=8", "train.per_device_train_batch_size (4, now 8)"),
        ("train.gradient_accumulation_steps=2", "train.gradient_accumulation_steps (1, now 2)"),
        ("train.max_grad_norm=0.1", "train.max_grad_norm (1.0, now 0.1)"),
        ("train.stop_on=eval_loss", "train.stop_on (None, now eval_loss)"),
        ("lambda=0.5", "method.lambda (0.1, now 0.5)"),
        ("nll_scope=full", "method.nll_scope (None, now full)"),
        ("data.shuffle=false", "data.shuffle (True, now False)"),
        ("eval.suites=perplexity", "eval.suites (['prefs'], now ['perplexity'])"),
        ("model.dropout=true", "model.dropout (False, now True)"),
        ("run.seed=7", "run.seed (0, now 7)"),
    ],
)
def test_a_changed_setting_is_refused_by_name(cut: Path, change: str, said: str) -> None:
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError) as refused:
        api.resume(cut, sets=[change], quiet=True)
    assert f"began with another configuration: {said}. Put it back, or resume with --change" in str(refused.value)
    assert {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()} == before


def test_an_edited_file_and_other_options_are_refused_too(cut: Path) -> None:
    file = cut / "run.yaml"
    file.write_text(file.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))
    done = align("resume", cut, cwd=cut.parent)
    assert done.returncode == 2
    assert "train.learning_rate (0.001, now 0.002)" in done.stderr
    config = settings.resolve(method="orpo", output=str(cut.parent), name="cut", sets=["train.max_steps=4"]).config
    with pytest.raises(CheckpointError, match=r"data.limit \(64, now None\).*eval.samples \(0, now 4\)"):
        api.run(config, resume=True)
    with pytest.raises(AlignError, match="--change applies to a run that is resumed"):
        api.run(config, change=True)


def test_what_does_not_alter_the_run_may_differ(cut: Path) -> None:
    free = ["run.plots=true", "data.workers=2", "train.logging_steps=3", "train.report_to=none", "data.cache=false"]
    same = ["train.max_grad_norm=1.0", "train.save_strategy=steps", "train.warmup_steps=0"]  # their defaults
    config = settings.resolve(cut / "run.yaml", sets=free + same, resume=True).config
    assert accepted_changes(RunDir(cut), config, accept=False) == []


def test_keys_of_a_later_version_count_where_they_alter_a_value(cut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignkit_orpo import ORPO

    directory, record = RunDir(cut), RunDir(cut).read_record()
    del record["config"]["train"]["stop_on"], record["config"]["method"]["lambda_start"]
    record["config"]["data"]["gone"] = 1
    directory.update_record(config=record["config"])
    config = settings.resolve(directory.config, resume=True).config
    changes = accepted_changes(directory, config, accept=True)
    assert [(change["key"], change["to"]) for change in changes] == [("data.gone", None)]
    monkeypatch.setattr(ORPO, "defaults", {"train.adam_beta2": 0.95, "train.adam_beta1": 0.9})
    del record["config"]["data"]["gone"]
    directory.update_record(config=record["config"])
    changed = settings.resolve(directory.config, resume=True).config
    assert accepted_changes(directory, changed, accept=True) == [
        {"step": 2, "key": "train.adam_beta2", "from": 0.999, "to": 0.95}
    ]


@pytest.mark.parametrize("change", ["model.dtype=bfloat16", "model.lora.r=4", "train.optim=sgd", "method=sft"])
def test_what_a_checkpoint_holds_cannot_be_changed(cut: Path, change: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be changed in the middle of a run"):
        api.resume(cut, sets=[change], change=True, quiet=True)


def test_the_strategy_cannot_be_changed(cut: Path) -> None:
    changed = settings.resolve(cut / "run.yaml", sets=["run.strategy=ddp"], resume=True).config
    with pytest.raises(CheckpointError, match=r"run\.strategy cannot be changed in the middle of a run"):
        accepted_changes(RunDir(cut), changed, accept=True)


def test_an_accepted_change_holds_from_the_checkpoint_on_and_is_recorded(cut: Path) -> None:
    rates = [1e-3, 7.5e-4, 5e-5, 2.5e-5]
    bins = "eval.settings.prefs.calibration_bins"
    changed = ["train.learning_rate=1e-4", "lambda=0.2", f"{bins}=3"]
    run = api.resume(cut, sets=changed, change=True, quiet=True)
    logged = [record for record in run.metrics if "loss" in record]
    assert [record["learning_rate"] for record in logged] == pytest.approx(rates)
    assert [record["lambda"] for record in logged] == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert run.record["changes"] == [
        {"step": 2, "key": "method.lambda", "from": 0.1, "to": 0.2},
        {"step": 2, "key": "train.learning_rate", "from": 1e-3, "to": 1e-4},
        {"step": 2, "key": bins, "from": None, "to": 3},
    ]
    results = [read_evaluation(cut / "eval" / part, "prefs") for part in ("before", "")]
    assert [result.settings["calibration_bins"] for result in results] == [3, 3], "before and after are comparable"
    assert run.record["config"]["train"]["learning_rate"] == 1e-4
    assert run.record["conventions"]["lambda"] == 0.2
    assert settings.resolve(cut / "run.yaml", resume=True).config.method.settings["lambda"] == 0.2
    card = (cut / "model" / "README.md").read_text()
    assert "`train.learning_rate` was changed from `0.001` to `0.0001` after step 2." in card
    assert "  after step 2: method.lambda changed from 0.1 to 0.2" in lines(read_status(cut))
    assert api.resume(cut, quiet=True).record == run.record, "nothing differs any more"


def test_a_comparison_says_what_was_changed(whole: Path, cut: Path) -> None:
    from alignkit_eval import compare

    directory = RunDir(cut)
    changes = [{"step": 2, "key": "train.learning_rate", "from": 1e-2, "to": 1e-3}]
    directory.update_record(status="finished", changes=changes)
    found = compare([whole, cut])
    assert len(found.arms) == 2, "the two runs did not train alike"
    assert (
        f"{cut}: settings were changed during the run (train.learning_rate: 0.01 to 0.001 after step 2)" in found.notes
    )


def test_a_finished_run_is_trained_further(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"train.max_steps \(4, now 5\)"):
        api.resume(tmp_path / "run", sets=["train.max_steps=5"], quiet=True)
    run = api.resume(tmp_path / "run", sets=["train.max_steps=5"], change=True, quiet=True)
    assert run.record["steps"] == 5
    assert [record["step"] for record in records(run.directory) if "loss" in record] == [1, 2, 3, 4, 5]
    assert run.record["changes"] == [{"step": 4, "key": "train.max_steps", "from": 4, "to": 5}]
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(CheckpointError, match="is finished and has no checkpoint to resume from"):
        api.resume(tmp_path / "run", sets=["train.max_steps=6"], change=True, quiet=True)


OPTIMIZER = {"optim": "adamw_torch", "lr_scheduler_type": "cosine", "max_steps": 4, "save_strategy": "steps"}


def test_the_optimizer_s_numbers_are_the_new_ones(tmp_path: Path) -> None:
    first, _ = build_trainer(configuration("orpo", **OPTIMIZER, save_steps=2), tmp_path, random_pairs(16))
    first.train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    new = {"learning_rate": 0.5, "weight_decay": 0.3, "adam_beta2": 0.9, "lr_scheduler_type": "linear", "max_steps": 8}
    config = configuration("orpo", **OPTIMIZER | new, save_steps=3, logging_steps=1)
    again, seen = build_trainer(config, tmp_path, random_pairs(16))
    again.train(resume_from_checkpoint=True, changed=[f"train.{key}" for key in new])
    decayed = again.optimizer.param_groups[0]
    assert decayed["weight_decay"] == 0.3
    assert decayed["betas"] == (0.9, 0.9)
    rates = [record["learning_rate"] for record in seen.logs if "loss" in record]
    assert rates == pytest.approx([0.5 * (8 - step) / 8 for step in range(2, 8)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-6", "checkpoint-8"]
    state = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["save_steps"] == 3
