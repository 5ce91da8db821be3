"""The files of a run's model and checkpoints are verified wherever they are loaded."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from alignkit import Run
from alignkit.config import ModelConfig
from alignkit.errors import AlignError, ModelError
from alignkit.models.load import build_model

from tests.helpers.runs import align, short_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    quiet = {"samples": 0, "suites": []}
    train = {"max_steps": 1, "save_steps": 1}
    output = tmp_path_factory.mktemp("runs")
    return short_run(output, "run", "sft", model={"lora": {"r": 2}}, train=train, eval=quiet)


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Path:
    return shutil.copytree(trained.directory, tmp_path / "run")


def flip(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


@pytest.mark.parametrize("place", ["model", "checkpoints/checkpoint-1"])
def test_a_flipped_bit_in_any_file_of_a_model_is_said(place: str, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory, draw = run / place, random.Random(0)
    files = sorted(file for file in directory.iterdir() if file.name not in ("README.md", "manifest.json"))
    assert len(files) > 4
    for file in files:
        whole = file.read_bytes()
        flip(file, draw)
        caplog.clear()
        said = ""
        try:
            build_model(ModelConfig(name=str(directory)))
        except AlignError as error:
            said = str(error)
        said += "\n".join(record.message for record in caplog.records)
        assert str(directory) in said, file
        assert place == "model" or f"{file} is damaged" in said or f"{file}:" in said
        file.write_bytes(whole)
    caplog.clear()
    build_model(ModelConfig(name=str(directory)))
    assert not [record for record in caplog.records if "changed" in record.message]


def test_damaged_weights_are_an_error_and_an_edited_configuration_is_named(run: Path, tmp_path: Path) -> None:
    config = run / "model/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 64}))
    done = align("eval", run, "--suite", "perplexity", "--set", "data.eval_limit=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{config} has changed since it was written" in done.stderr
    flip(run / "model/adapter_model.safetensors", random.Random(1))
    for command in (["eval", run, "--suite", "perplexity"], ["export", run]):
        done = align(*command, cwd=tmp_path)
        assert (done.returncode, "adapter_model.safetensors is damaged" in done.stderr) == (2, True), done.stderr


def test_a_copy_outside_of_the_run_may_be_changed(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run / "model", tmp_path / "copy")
    build_model(ModelConfig(name=str(copy)))
    (run / "model/adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        build_model(ModelConfig(name=str(run)))
