"""Model cards of real runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from alignkit import Run
from alignkit.demo import data_path, model_path
from alignkit.rundir.record import RunRecord
from alignkit_eval.export import export
from alignkit_eval.merging import Merging
from alignkit_eval.report.card import model_card

from tests.helpers.runs import short_run

LIGHT: dict[str, Any] = {"eval": {"suites": ["prefs"], "samples": 0}, "run": {"plots": False}}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose model and data are local paths."""
    here = tmp_path_factory.mktemp("card")
    model = shutil.copytree(model_path(), here / "models" / "tiny")
    data = shutil.copy(data_path("train"), here / "pairs.jsonl")
    sections: dict[str, Any] = {"model": {"name": str(model)}, "data": {"source": str(data), "limit": 60}}
    return short_run(here, "full", "orpo", **sections, **LIGHT)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Run:
    lora = {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}}
    return short_run(tmp_path_factory.mktemp("card"), "adapter", "dpo", model=lora, **LIGHT)


@pytest.fixture(scope="module")
def on_policy(tmp_path_factory: pytest.TempPathFactory) -> Run:
    train = {"max_steps": 1, "per_device_train_batch_size": 2}
    return short_run(tmp_path_factory.mktemp("card"), "on-policy", "grpo", train=train, **LIGHT)


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return short_run(tmp_path_factory.mktemp("card"), "reward", "reward", train={"max_steps": 1}, **LIGHT)


@pytest.fixture(scope="module")
def merged(full: Run, adapter: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(
        [full.directory, adapter.directory], tmp_path_factory.mktemp("card") / "merged", Merging(weights=[0.25, 0.75])
    )


@pytest.fixture(params=["full", "adapter", "on_policy", "reward", "merged"])
def model(request: pytest.FixtureRequest) -> Path:
    """The directory of each model."""
    found: Run | Path = request.getfixturevalue(request.param)
    return found if isinstance(found, Path) else found.directory / "model"


def parts(card: str) -> tuple[dict[str, Any], str]:
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def record(run: Run) -> RunRecord:
    return RunRecord.parse(run.record, run.directory / "run.json")


def card_of(run: Run | Path) -> tuple[dict[str, Any], str]:
    directory = run if isinstance(run, Path) else run.directory / "model"
    return parts((directory / "README.md").read_text())


def test_no_card_shows_a_local_directory_or_a_python_value(model: Path) -> None:
    card = (model / "README.md").read_text()
    assert re.findall(r"(?:^|[\s`|(=\"'])(/[^\s`|]*)", card) == []
    prose = re.sub(r"```.*?```|## Evaluation.*?\n## ", "", card, flags=re.DOTALL)  # without code and intervals
    for text in ("None", "True", "False", "{'", "[", "{", "nan"):
        assert text not in prose


def test_the_hub_reads_the_head_of_every_card(model: Path) -> None:
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import metadata_load

    data = ModelCard.load(model / "README.md").data
    assert data.library_name in ("transformers", "peft")
    assert data.pipeline_tag in ("text-generation", "text-classification")
    assert data.to_dict() == metadata_load(model / "README.md")


def test_the_code_of_every_card_runs(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (model / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("path/to/model", str(model)), names)
    assert "reward" in names or capsys.readouterr().out.startswith("Your prompt")


def test_the_card_says_what_was_trained_on_what_and_how(full: Run) -> None:
    head, body = card_of(full)
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["alignkit", "orpo"],
    }
    known = record(full)
    for text in (
        "# tiny-orpo",
        "A fine-tuned version of `tiny`, trained with **orpo** by alignkit.",
        "<https://arxiv.org/abs/2403.07691>",
        f"Trained for 4 optimizer steps on {known.data.train.rows} rows of `pairs.jsonl` (",
        known.data.hash,
        known.model.hash,
        "| lambda | `0.1` |",
        "| nll_scope | `completion` |",
        "| train.max_steps | `4` |",
        "| run.seed | `0` |",
        f"| training loss, last | {known.train.loss:.4g} |",
        "| trained parameters | 901,760 of 901,760 |",
        f"| torch | {known.environment.versions['torch']} |",
    ):
        assert text in body


def test_the_card_shows_the_results_with_their_intervals(full: Run) -> None:
    before, after = (full.evaluation[when]["prefs"]["accuracy_sum"] for when in ("before", "after"))
    texts = [f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for e in (before, after)]
    assert f"| accuracy (sum) | {texts[0]} | {texts[1]} | {after['value'] - before['value']:+.3f} |" in card_of(full)[1]


def test_the_card_of_an_adapter_loads_with_peft(adapter: Run) -> None:
    head, body = card_of(adapter)
    assert head["library_name"] == "peft"
    assert head["tags"] == ["alignkit", "dpo", "lora"]
    assert "A low-rank adapter (LoRA) for alignkit's embedded demo model" in body
    assert "AutoPeftModelForCausalLM.from_pretrained" in body
    assert "| model.lora.target_modules | `q_proj, v_proj` |" in body


def test_the_card_of_an_on_policy_run_names_the_reward(on_policy: Run) -> None:
    _, body = card_of(on_policy)
    assert "| reward | `name=alignkit.demo.world:quality weight=1` |" in body
    assert "prompt tokens); 30 rows held out" in body, "prompts have no completion tokens"


def test_the_card_of_a_reward_model_is_of_a_classifier(reward: Run) -> None:
    head, body = card_of(reward)
    assert head["pipeline_tag"] == "text-classification"
    assert "A reward model: a fine-tuned version of" in body


def test_the_card_of_an_export_is_of_the_whole_model(adapter: Run, merged: Path, tmp_path: Path) -> None:
    head, body = card_of(export([adapter.directory], tmp_path / "whole"))
    assert head["library_name"] == "transformers"
    assert "PeftModel" not in body
    assert "| accuracy (sum) |" in body
    head, body = card_of(merged)
    assert head["tags"] == ["alignkit", "merge"]
    assert "# full + adapter" in body
    assert "| full | 0.25 |\n| adapter | 0.75 |" in body
    assert "accuracy" not in body, "results of one run do not apply to the mean"


def renamed(record: RunRecord, name: str, path: str) -> RunRecord:
    return record.model_copy(update={"model": record.model.model_copy(update={"name": name, "path": path})})


def test_a_hub_id_is_the_base_model_of_the_head(full: Run) -> None:
    head, body = parts(model_card(renamed(record(full), "org/base-model", "org/base-model")))
    assert head["base_model"] == "org/base-model"
    assert "A fine-tuned version of `org/base-model`" in body


@pytest.mark.parametrize(
    ("name", "shown"),
    [("demo", "demo model"), ("/models/llama", "`llama`"), ("/runs/a/model", "`a/model`"), ("runs/a", "`runs/a`")],
)
def test_a_base_model_that_is_not_a_hub_id_stays_out_of_the_head(full: Run, name: str, shown: str) -> None:
    head, body = parts(model_card(renamed(record(full), name, str(Path("/somewhere") / name))))
    assert "base_model" not in head
    assert shown in body
    assert "/somewhere" not in body
    assert "/models" not in body


def test_the_keys_every_record_has_make_a_card() -> None:
    for adapter in (True, False):
        minimal = {"status": "finished", "method": "sft", "model": {"name": "org/base", "adapter": adapter}}
        head, body = parts(model_card(RunRecord.parse(minimal, Path("run.json"))))
        assert "sft" in head["tags"]
        assert "None" not in body
