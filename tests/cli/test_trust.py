"""Code that a file names runs only with consent, which is asked for once and recorded by content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from alignkit.__main__ import main
from alignkit.config import ModelConfig
from alignkit.errors import ConfigError
from alignkit.models.load import build_model
from alignkit.onpolicy.rewards import load_function
from alignkit.system import trust

from tests.cli.test_bad_input import model_directory

CODE = "from pathlib import Path\nPath('ran').touch()\ndef f(prompt, answer): return 1.0\n"
FILES = {
    "run.yaml": ("method: {name: grpo, reward: 'length, shared.py:f'}", ["run"]),
    "list.yaml": ("method: {name: grpo, reward: [{name: function, function: 'shared.py:f'}]}", ["run", "--dry-run"]),
    "sweep.yaml": ("method: {name: grpo, reward: 'shared.py:f'}", ["sweep", "--over", "beta=0,1", "--jobs", "2"]),
    "eval.yaml": (
        "eval: {suites: generate, settings: {generate: {checker: 'shared.py:f'}}}",
        ["run", "--method", "sft"],
    ),
    "trl.yaml": ("method: {name: trl-grpo, reward: 'shared.py:f'}", ["run"]),
    "tasks.yaml": (
        "eval: {suites: lm-eval, settings: {lm-eval: {tasks: t, include_path: tasks}}}",
        ["run", "--method=sft"],
    ),
    "pipeline.yaml": (
        "stages:\n- {method: sft}\n- {eval: all, suites: generate, settings: {generate: {rewards: 'shared.py:f'}}}",
        ["pipeline"],
    ),
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with code of its own, and no consent yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "shared.py").write_text(CODE)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "t.yaml").write_text("task: t\n")
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_a_shared_file_runs_nothing_before_it_is_trusted(
    work: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text, (command, *options) = FILES[name]
    (work / name).write_text(text)
    assert main([command, name, *options]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    code = "tasks (" if name == "tasks.yaml" else "shared.py:f ("
    assert said.startswith(f"Error: {name}:")
    assert f" runs {code}" in said
    assert "add --trust" in said
    assert not (work / "ran").exists()
    assert not (work / "runs").exists() or not list((work / "runs").glob("*/*"))


def test_consent_is_recorded_by_content(work: Path) -> None:
    def command(*arguments: str, named: bool = True) -> None:
        with trust.command_line(arguments):
            if named:
                trust.mention("reward: shared.py:f", "a.yaml:1: method.reward")
            trust.give("--trust" in arguments)
            load_function("shared.py:f")

    with pytest.raises(ConfigError, match=r"a\.yaml:1: method\.reward runs shared\.py:f"):
        command("run", "a.yaml")
    command("run", "a.yaml", "--trust")
    command("run", "a.yaml")  # the same content
    (work / "shared.py").write_text(CODE + "# changed\n")
    with pytest.raises(ConfigError, match="add --trust"):
        command("run", "a.yaml")
    command("run", "--set", "method.rewards=[{name: shared.py:f}]", named=False)  # the user's own word
    command("resume", "runs/a")  # recorded with the first run
    (work / "shared.py").write_text(CODE + "# again\n")
    load_function("shared.py:f")  # the caller's word, from Python
    command("resume", "runs/a")
    (work / "shared.py:f").touch()
    (work / "shared.py").write_text(CODE + "# and a file of that name\n")
    with pytest.raises(ConfigError, match=r"this runs shared\.py:f"):
        command("eval", "shared.py:f", named=False)


def test_records_are_private_and_those_of_others_are_ignored(work: Path) -> None:
    load_function("shared.py:f")
    folder = work / "state" / "alignkit" / "trusted"
    (record,) = folder.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert record.stat().st_mode & 0o077 == 0
    record.rename(work / "planted")
    record.symlink_to(work / "planted")
    with trust.command_line(["run", "a.yaml"]), pytest.raises(ConfigError, match="--trust"):
        load_function("shared.py:f")
    folder.chmod(0o777)
    record.unlink()
    load_function("shared.py:f")
    assert folder.stat().st_mode & 0o022 == 0


def test_rewards_of_installed_packages_need_no_consent(work: Path) -> None:
    with trust.command_line(["run", "a.yaml"]):
        load_function("alignkit.demo.world:quality")
        load_function("alignkit_reward:Length")
        with pytest.raises(ConfigError, match=r"runs alignkit.system.files:write_text \("):
            load_function("alignkit.system.files:write_text")
        with pytest.raises(ConfigError, match=r"this runs posix:system: read the code"):
            load_function("posix:system")


def test_a_model_s_own_code(work: Path) -> None:
    path = model_directory(work)
    (path / "own.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM\nPath('ran').touch()\n"
        "class Own(LlamaConfig):\n    model_type = 'own'\nclass OwnModel(LlamaForCausalLM):\n    config_class = Own\n"
    )
    config = json.loads((path / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"] = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}
    (path / "config.json").write_text(json.dumps(config))
    for arguments in ([], ["generate", str(path)]):
        with trust.command_line(arguments), pytest.raises(ConfigError, match=r"this runs the code of .*own\.py\)"):
            build_model(ModelConfig(name=str(path)))
    with pytest.raises(ConfigError, match="add --trust"):  # from Python without trust_remote_code
        build_model(ModelConfig(name=str(path)))
    assert not (work / "ran").exists()
    build_model(ModelConfig(name=str(path), trust_remote_code=True))
    with trust.command_line(["generate", str(path)]):
        assert type(build_model(ModelConfig(name=str(path))).model).__name__ == "OwnModel"


def test_a_pickle_among_weights_is_refused_without_advice_to_load_it(
    work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = model_directory(work)
    (path / "model.safetensors").unlink()
    torch.save({"a": Touch()}, path / "pytorch_model.bin")
    assert main(["eval", str(path), "--suite", "perplexity", "--data", "demo"]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.endswith("a weights file is a pickle that would run code: save the weights as safetensors")
    assert not (work / "ran").exists()


class Touch:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]
