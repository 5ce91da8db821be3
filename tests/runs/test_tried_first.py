"""What would fail at the end of a run is tried before its first step, and optional things fail after the model is saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from alignkit.config import ModelConfig
from alignkit.demo import model_path
from alignkit.errors import AlignError, ConfigError, ModelError
from alignkit.models.load import build_model
from alignkit_checks.saving import try_saving

from tests.helpers.runs import records, short_run

QUICK: dict[str, Any] = {"eval": {"suites": [], "samples": 0}, "data": {"limit": 40, "eval_limit": 4}}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(model_path(), tmp_path / "start")


def generation_config(model: Path, **keys: Any) -> dict[str, Any]:
    file = model / "generation_config.json"
    if keys:
        file.write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2, **keys}))
    return dict(json.loads(file.read_text()))


@pytest.mark.parametrize(
    ("keys", "unset"),
    [
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.6}, "temperature, top_p"),
        ({"num_beams": 1, "length_penalty": 2.0}, "length_penalty"),
    ],
)
def test_keys_of_a_generation_configuration_without_effect_are_left_out(
    model: Path, tmp_path: Path, keys: dict[str, Any], unset: str
) -> None:
    generation_config(model, **keys)
    done = short_run(tmp_path, "run", model={"name": str(model)}, train={"max_steps": 1}, **QUICK)
    saved = generation_config(done.directory / "model")
    assert not saved.keys() & set(unset.split(", "))
    said = (done.directory / "train.log").read_text()
    assert f"generation_config.json of {model}: {unset} without effect, left out of the saved model" in said


def test_a_metric_that_does_not_exist_is_refused_before_the_first_step(tmp_path: Path) -> None:
    train = {"load_best_model_at_end": True, "metric_for_best_model": "rewards/margin", "eval_strategy": "steps"}
    with pytest.raises(
        ConfigError, match=r'no evaluation gives eval_rewards/margin, did you mean "eval_rewards/margins"'
    ):
        short_run(tmp_path, "run", "dpo", train={**train, "eval_steps": 2}, **QUICK)
    assert not any("loss" in record for record in records(tmp_path / "run"))


def test_settings_of_a_suite_that_is_left_out_are_checked(tmp_path: Path) -> None:
    settings = {"generate": {"max_new_token": 3}}
    with pytest.raises(
        ConfigError, match=r'unknown key eval\.settings\.generate\.max_new_token, did you mean "max_new_tok'
    ):
        short_run(tmp_path, "run", eval={"suites": ["prefs"], "samples": 0, "settings": settings})


def test_a_model_that_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    loaded = build_model(ModelConfig())
    loaded.model.generation_config.early_stopping = "maybe"
    with pytest.raises(ModelError, match="could not be saved after training: `early_stopping` must be"):
        try_saving(loaded, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"report_to": ["wandb"]}, "wandb needs a package: pip install wandb"),
        ({"report_to": ["mlflow"]}, "pip install mlflow"),
        ({"report_to": ["swanlab"]}, "swanlab"),
        ({"optim": "adamw_bnb_8bit"}, "install `bitsandbytes`"),
        ({"optim": "galore_adamw"}, "install `galore_torch`"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_missing_package_or_setting_is_found_before_data_and_model(
    tmp_path: Path, train: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        short_run(tmp_path, "run", model={"name": "nowhere/at-all"}, train=train, **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_refused_with_both_numbers(tmp_path: Path) -> None:
    kept = 10**8
    steps = {"max_steps": kept, "save_strategy": "steps", "save_steps": 1, "save_total_limit": kept}
    sizes = rf"{kept} checkpoints of 10 MiB and the model of 3 MiB need 1,03\d,\d+,\d+ MiB while .*, and [\d,]+ MiB are free"
    with pytest.raises(ConfigError, match=sizes):
        short_run(tmp_path, "run", train=steps, **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_on_disk_when_a_tracker_fails_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainerCallback
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    class Tracker(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise ConnectionError("the tracker is away")

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "swanlab", Tracker)
    with pytest.raises((ConnectionError, AlignError), match="the tracker is away"):
        short_run(tmp_path, "run", train={"report_to": ["swanlab"], "save_strategy": "no", "max_steps": 1}, **QUICK)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
