"""``align init``: a configuration from answers, and from whole configurations of other libraries; ``align examples``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from alignkit import settings
from alignkit.cli import run_command
from alignkit.settings import yaml_files
from alignkit_commands.init.carry import carry
from alignkit_commands.init.command import init
from alignkit_commands.init.tools import entry_for, recognise
from click.testing import CliRunner

CONFIGURATIONS = Path(__file__).parent / "configurations"

CARRIED: dict[str, dict[str, Any]] = {
    "trl_dpo.yaml --method dpo": {
        "method": {"name": "dpo", "beta": 0.05, "loss": "ipo"},
        "model.lora": {"r": 32, "alpha": 16, "target_modules": ["q_proj", "v_proj"], "dropout": 0.05},
        "model.attention": "sdpa",
        "data": {"source": "demo", "eval_split": "test", "max_length": 256, "max_prompt_length": 128},
        "train.warmup_steps": 0.1,
        "train.eval_steps": 100,
        "run": {"name": "zephyr-dpo", "output": "runs", "seed": 42},
    },
    "trl_orpo.sh": {
        "method": {"name": "orpo", "lambda": 0.1},
        "model.lora.target_modules": "all-linear",
        "data": {"source": "demo", "max_length": 256, "max_completion_length": 128},
        "train": {"per_device_train_batch_size": 4, "learning_rate": 8e-6, "max_steps": 100, "logging_steps": 10},
        "run.name": "gemma-orpo",
    },
    "llamafactory_dpo.yaml": {
        "method": {"name": "orpo", "lambda": 0.1},
        "model.lora": {"r": 8, "target_modules": "all-linear", "alpha": 16, "dropout": 0.0},
        "data": {"source": "dpo_en_demo", "max_length": 2048, "limit": 1000, "workers": 16, "eval_split": 0.1},
        "train.num_train_epochs": 3.0,
        "run": {"name": "dpo", "output": "saves/llama3-8b/lora"},
    },
    "axolotl_qlora.yaml": {
        "method": {"name": "dpo", "beta": 0.1},
        "model.quantization": "4bit",
        "model.lora.modules_to_save": ["embed_tokens", "lm_head"],
        "data": {
            "source": "fozziethebeat/alpaca_messages_2k_dpo_test",
            "split": "train",
            "eval_split": 0.05,
            "max_length": 4096,
        },
        "train.per_device_train_batch_size": 2,
        "train.save_strategy": "epoch",
    },
    "autotrain_orpo.yaml": {
        "method.name": "orpo",
        "model.quantization": "4bit",
        "model.chat_template": "chatml",
        "model.lora.alpha": 32,
        "data.columns": {"chosen": "good"},
        "data.max_prompt_length": 512,
        "train.learning_rate": 3e-5,
        "train.gradient_accumulation_steps": 4,
        "train.fp16": True,
    },
}
"""File and options -> what is carried over."""

LEFT = {
    "trl_dpo.yaml --method dpo": [
        "13: lora_task_type",
        "43: train.per_device_eval_batch_size cannot",
        "44: push_to_hub",
    ],
    "trl_orpo.sh": ["5: config_file", "16: no_remove_unused_columns: no such setting here"],
    "llamafactory_dpo.yaml": ["15: dataset: dpo_en_demo is explained in", "16: template", "28: save_only_model"],
    "axolotl_qlora.yaml": ["13: datasets.0.field_messages", "23: sample_packing", "57: evals_per_epoch"],
    "autotrain_orpo.yaml": ["19: model_max_length", "34: username", "36: push_to_hub"],
}


@pytest.mark.parametrize("given", CARRIED)
def test_a_whole_configuration_is_carried_over(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *options = given.split()
    assert run_command(["init", "ours.yaml", "--from", str(CONFIGURATIONS / name), *options]) == 0
    said = capsys.readouterr().err
    layer = yaml_files.read(tmp_path / "ours.yaml")
    for path, value in CARRIED[given].items():
        assert layer.get(*path.split(".")) == value, path
    for words in LEFT[given]:
        assert f"not carried over: {CONFIGURATIONS / name}:{words}" in said
    settings.resolve(tmp_path / "ours.yaml")
    text = (tmp_path / "ours.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=")
    lines = [line.strip() for line in text.splitlines()]
    keyed = [i for i, line in enumerate(lines) if line.partition(":")[0] in layer.values["train"]]
    assert all(lines[i - 1].startswith("# ") for i in keyed)  # every key is explained


@pytest.mark.parametrize("given", CARRIED)
def test_no_key_is_left_out_in_silence(given: str) -> None:
    name, *options = given.split()
    table, found = recognise(CONFIGURATIONS / name, None)
    carried = carry(table, found, options[-1] if options else None)
    said = {line.split(": ", 1)[0] for line in carried.left} | {*carried.layer.places.values()}
    for key, value in found.values.items():
        entry = entry_for(table["keys"].get(key), value, carried.method)
        same = isinstance(entry, dict) and all(carried.layer.get(*k.split(".")) == v for k, v in entry.items())
        same |= isinstance(entry, str) and entry == f"data.columns.{value}"
        assert same or value is None or key == table.get("method_key") or found.places[key] in said, key


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("model_name_or_path: m\ndataset_name: d\nbeta: 1\n", [], "does not say which method it is for: add --method"),
        ("a: 1\nb: 2\n", [], "not recognised as a configuration of AutoTrain, axolotl, LLaMA-Factory or TRL"),
        ("a: [\n", [], ":2: invalid YAML"),
        ("base_model: m\nsequence_len: 8\n", ["--method", "dppo"], 'unknown method "dppo", did you mean "ppo"?'),
    ],
)
def test_a_file_that_cannot_be_carried_over(
    text: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.yaml").write_text(text)
    out = tmp_path / "out.yaml"
    assert run_command(["init", str(out), "--from", str(tmp_path / "theirs.yaml"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_data_sets_that_a_dataset_info_explains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    about = {"file_name": "pairs.json", "ranking": True, "columns": {"prompt": "instruction", "chosen": "good"}}
    (tmp_path / "data" / "dataset_info.json").write_text(
        '{"mine": %s, "hub": {"hf_hub_url": "org/set"}}'.replace(
            "%s", str(about).replace("'", '"').replace("True", "true")
        )
    )
    (tmp_path / "lf.yaml").write_text("stage: dpo\ndataset: mine, hub\ncutoff_len: 64\npref_loss: sigmoid\nbogus: 1\n")
    assert run_command(["init", "o.yaml", "--from", "lf.yaml"]) == 0
    layer = yaml_files.read(tmp_path / "o.yaml")
    assert layer.get("data", "sources") == ["data/pairs.json", "org/set"]
    assert layer.get("data", "columns") == {"prompt": "instruction", "chosen": "good"}
    assert layer.get("method") == {"name": "dpo", "beta": 0.1, "loss": "sigmoid"}


@pytest.mark.parametrize("hardware", ["cpu", "gpu", "gpus", "small-gpu"])
def test_answers_become_a_configuration(hardware: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answers = f"dppo\ndpo\nsome/model\nprefs.jsonl\n{hardware}\n"
    done = CliRunner().invoke(init, [], input=answers)
    assert done.exit_code == 0, done.output
    assert "dppo is not one of cpo, distill, dpo" in done.stderr
    config = settings.resolve(tmp_path / "dpo.yaml").config
    assert (config.method.name, config.model.name, config.data.source) == ("dpo", "some/model", "prefs.jsonl")
    assert (config.model.lora is not None) == (hardware == "small-gpu")
    assert run_command(["init", "--method", "dpo", "--model", "m", "--data", "d", "--hardware", "cpu"]) == 2  # exists


def test_examples_are_listed_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["examples"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"rlhf", "onpolicy", "progressive", "kto", "simpo", "tracker", "first_run"} <= {*names}
    for name in names:
        assert run_command(["examples", name]) == 0
    assert (tmp_path / "rlhf.yaml").is_file()
    assert (tmp_path / "alignkit-simpo" / "pyproject.toml").is_file()
    assert run_command(["examples", "rlhf"]) == 2
    assert run_command(["examples", "rlhff"]) == 2
    assert 'no example rlhff, did you mean "rlhf"?' in capsys.readouterr().err


@pytest.mark.parametrize("words", [["examples", "rlhf"], ["new-plugin", "mine"], ["examples"]])
@pytest.mark.parametrize(
    ("place", "message"),
    [("absent", "--output absent: the directory does not exist"), ("file", "cannot write file: .*/file is a file")],
)
def test_a_directory_to_write_into_is_checked_alike_by_all_commands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    place: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert run_command([*words, "--output", place]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
