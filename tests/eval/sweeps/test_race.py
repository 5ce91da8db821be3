"""Racing sweeps: who leaves when, the same decisions after an interruption, revived arms to the bit, and what is shown."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alignkit.errors import AlignError, ConfigError
from alignkit_eval.comparison.looks import RaceSettings
from alignkit_eval.sweeps.grid import SweepSpec, cells
from alignkit_eval.sweeps.sweep import Sweep, race_settings, resume, sweep

from tests.helpers.forked import At
from tests.helpers.runs import align, saved_weights

pytestmark = pytest.mark.slow

QUICK = [
    *("train.logging_steps=1", "data.eval_limit=80", "eval.settings.perplexity.text=null"),
    *("eval.suites=[perplexity]", "eval.before=false", "train.per_device_train_batch_size=4"),
    *("data.limit=120", "eval.samples=0", "run.plots=false"),
]
ARMS = {
    "good": "{learning_rate: 1e-3}",
    "same": "{learning_rate: 1e-3, max_grad_norm: 1e4}",  # neither clips
    "broken": "{learning_rate: 0.3}",
}
PLAN = {"rungs": [0.25], "objective": ["perplexity"]}


def arms(directory: Path) -> list[str]:
    """Write a file for each arm: two that are equal, and one with a learning rate that breaks the model at once."""
    for name, train in ARMS.items():
        (directory / f"{name}.yaml").write_text(f"train: {{max_steps: 4, {train[1:]}\n")
    return [str(directory / f"{name}.yaml") for name in ARMS]


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Return a race of the installed command that got Ctrl-C before its first look and after it, and was resumed."""
    output = tmp_path_factory.mktemp("races")
    words = ["sweep", "--method", "orpo", "--over", f"config={','.join(arms(output))}", "--race", "--name", "race"]
    words += ["--race-set", "rungs=[0.25]", "--race-set", "objective=perplexity"]
    for setting in QUICK:
        words += ["--set", setting]

    def interrupted(arm: str, *arguments: str) -> dict[str, Any]:
        at = At(f"open runs/race/{arm}-seed=0/metrics.jsonl", 1, signal.SIGINT)
        ended = align(*arguments, cwd=output, at=at)
        assert ended.returncode == 130, ended.stderr
        assert "resume with: align sweep --resume runs/race" in ended.stderr
        return dict(json.loads((output / "runs/race/sweep.json").read_text()))

    assert interrupted("same", *words)["race"]["looks"] == []
    before = interrupted("same", "sweep", "--resume", "runs/race")
    assert [look["rung"] for look in before["race"]["looks"]] == [0.25]
    assert before["cells"][1]["status"] != "finished"
    done = resume(output / "runs/race")
    assert stored(done)["race"]["looks"] == before["race"]["looks"]
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Return the same race, carried out at once."""
    output = tmp_path_factory.mktemp("whole")
    return sweep({"config": arms(output)}, method="orpo", sets=QUICK, race=PLAN, output=output, name="race")


def stored(done: Sweep) -> dict[str, Any]:
    return dict(json.loads((done.directory / "sweep.json").read_text()))


def test_the_broken_arm_leaves_at_the_first_look(raced: Sweep) -> None:
    race = stored(raced)["race"]
    (gone,) = race["looks"][0]["stopped"]
    assert gone["arm"] == "broken"
    assert gone["p"] <= race["looks"][0]["level"]
    assert gone["shortfalls"][0]["metric"] == "perplexity"
    assert gone["shortfalls"][0]["low"] > 0
    assert gone["saved_tokens"] > 0
    assert race["saved"]["tokens"] == gone["saved_tokens"]
    assert 0.2 < race["saved"]["share_of_tokens"] < 0.3  # three quarters of one arm in three
    status = {cell["name"]: cell["status"] for cell in stored(raced)["cells"]}
    assert status == {"good-seed=0": "finished", "same-seed=0": "finished", "broken-seed=0": "stopped"}
    assert raced.comparison is not None
    assert len(raced.comparison.arms) == 2
    assert any("chosen so" in note for note in raced.notes)
    assert any("one seed" in note for note in raced.notes)
    page = (raced.directory / "report.html").read_text()
    assert "1 of 3 arms were stopped early" in page
    assert "broken" in page


def test_an_interrupted_race_is_the_one_without_an_interruption(raced: Sweep, whole: Sweep) -> None:
    for name in ("good", "same", "broken"):
        one, other = (done.directory / f"{name}-seed=0" for done in (raced, whole))
        assert (one / "model").is_dir() == (other / "model").is_dir() == (name != "broken")
        if name != "broken":
            assert saved_weights(one) == saved_weights(other)
    first, second = (stored(done)["race"]["looks"] for done in (raced, whole))
    for looks in (first, second):
        for gone in looks[0]["stopped"]:
            del gone["saved_cpu_seconds"]  # measured
    assert first == second
    assert stored(raced)["comparison"]["verdict"] == stored(whole)["comparison"]["verdict"]


def test_looks_made_again_decide_the_same(raced: Sweep, tmp_path: Path) -> None:
    again = tmp_path / "race"
    shutil.copytree(raced.directory, again)
    (again / "sweep.json").unlink()
    looks = stored(resume(again))["race"]["looks"]
    assert looks == stored(raced)["race"]["looks"]


def test_a_revived_arm_has_the_weights_it_would_have_had(raced: Sweep, tmp_path: Path) -> None:
    copied = tmp_path / "race"
    shutil.copytree(raced.directory, copied)
    revived = resume(copied, revive=["broken"])
    alone = sweep({"config": arms(tmp_path)[2:]}, method="orpo", sets=QUICK, output=tmp_path, name="alone")
    assert saved_weights(copied / "broken-seed=0") == saved_weights(alone.directory / "broken-seed=0")
    assert revived.race is not None
    assert revived.race.saved()[0] == 0
    assert revived.comparison is not None
    assert len(revived.comparison.arms) == 3
    assert any("broken" in note and "after they were stopped" in note for note in revived.notes)
    with pytest.raises(ConfigError, match="--revive good: no such arm was stopped"):
        resume(copied, revive=["good"])


def test_a_plan_changed_after_a_look_is_refused(raced: Sweep, tmp_path: Path) -> None:
    copied = tmp_path / "race"
    shutil.copytree(raced.directory, copied)
    file = copied / "sweep.yaml"
    file.write_text(file.read_text().replace("alpha: 0.05", "alpha: 0.2"))
    with pytest.raises(ConfigError, match=r"sweep\.yaml: the race was changed after its first look"):
        resume(copied)


def test_settings_of_a_race_come_from_the_file_and_the_command(tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text("method: orpo\nrace:\n  rungs: [0.2, 0.6]\n  alpha: 0.1\n")
    assert race_settings({}, None) == RaceSettings()
    assert race_settings({"alpha": 0.02}, file) == RaceSettings(rungs=[0.2, 0.6], alpha=0.02)
    spec = SweepSpec(over={"lambda": ["0", "1"]}, file=str(file), race=race_settings({}, file).model_dump())
    made, _ = cells(spec, tmp_path)
    assert [cell.config.run.pause_at for cell in made] == [[0.2, 0.6]] * 2
    assert all(cell.config.run.pause_at == [] for cell in cells(replace(spec, race=None), tmp_path)[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--race", "--race-set", "rungs=[0.5, 0.5]"], "rungs"),
        (["--race", "--race-set", "rungs=[0.5, 1.5]"], "rungs"),
        (["--race", "--race-set", "rung=[0.5]"], 'did you mean "rungs"'),
        (
            ["--race", "--race-set", "objective=kl"],
            "race.objective: the cells do not measure kl: name a metric of eval.s",
        ),
        (["--race", "--race-set", "alpha=0"], "alpha"),
        (["--race", "--race-set", "spending=even"], "pocock"),
        (["--race-set", "alpha=0.1"], "--race-set has no effect without --race"),
        (["--revive", "lambda=0"], "--revive applies to a race"),
        (["--race"], "no.yaml"),
    ],
)
def test_races_that_cannot_be_meant_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    file = ["no.yaml"] if words == ["--race"] else []
    done = align("sweep", *file, "--method", "orpo", "--over", "lambda=0,1", *words, cwd=tmp_path)
    assert done.returncode == AlignError.exit_code, done.stderr
    assert message in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_metric_that_does_not_exist_is_named_and_can_be_corrected(raced: Sweep, tmp_path: Path) -> None:
    copied = tmp_path / "race"
    shutil.copytree(raced.directory, copied)
    file = copied / "sweep.yaml"
    right = file.read_text()
    file.write_text(right.replace("- perplexity", "- perplexty"))
    with pytest.raises(
        ConfigError,
        match=r'sweep\.yaml: race\.objective: the cells do not measure perplexty, did you mean "perplexity"',
    ):
        resume(copied)
    file.write_text(right)
    assert stored(resume(copied))["race"]["looks"] == stored(raced)["race"]["looks"]
