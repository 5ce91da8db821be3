"""The assignment of accelerators to the processes that carry out cells."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from alignkit import SchedulerSettings, Task
from alignkit.errors import ConfigError
from alignkit_eval.scheduling.devices import VISIBLE, environments, one_visible_device
from alignkit_eval.scheduling.local import carry_out_beside
from hypothesis import given
from hypothesis import strategies as st

NAMES = [str(i) for i in range(8)]


def assigned(number: int, **settings: float) -> list[str]:
    devices = [each[VISIBLE] for each in environments(NAMES[:number], SchedulerSettings.model_validate(settings))]
    return sorted(devices)


@given(st.integers(1, 8), st.integers(1, 8))
def test_cells_of_several_accelerators_share_none(number: int, each: int) -> None:
    if each > number:
        with pytest.raises(ConfigError, match=f"gpus_per_cell is {each}, and {number} accelerator"):
            assigned(number, gpus_per_cell=each)
        return
    groups = [group.split(",") for group in assigned(number, gpus_per_cell=each)]
    used = [device for group in groups for device in group]
    assert len(groups) == number // each
    assert {len(group) for group in groups} == {each}
    assert len(set(used)) == len(used)
    assert set(used) <= set(NAMES[:number])


@pytest.mark.parametrize(
    ("number", "settings", "expected"),
    [
        (8, {}, NAMES),
        (8, {"jobs": 3}, ["0", "1", "2"]),
        (1, {"jobs": 2}, ["0", "0"]),
        (2, {"jobs": 3}, ["0", "0", "1"]),
        (2, {"gpus_per_cell": 0.5}, ["0", "0", "1", "1"]),
        (3, {"gpus_per_cell": 2}, ["0,1"]),
        (2, {"gpus_per_cell": 0, "jobs": 2}, ["", ""]),
    ],
)
def test_every_process_sees_its_own(number: int, settings: dict[str, float], expected: list[str]) -> None:
    assert assigned(number, **settings) == expected


@pytest.mark.parametrize(
    ("number", "settings", "message"),
    [
        (0, {"gpus_per_cell": 1}, "no accelerator is visible here"),
        (1, {"gpus_per_cell": 2}, "1 accelerator is visible here"),
        (4, {"gpus_per_cell": 2, "jobs": 3}, "there is room for 2"),
        (1, {"gpus_per_cell": 0.5, "jobs": 3}, "there is room for 2"),
    ],
)
def test_too_few_accelerators(number: int, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assigned(number, **settings)


def note(path: Path) -> None:
    path.mkdir()
    path.joinpath("seen").write_text(f"{os.environ.get(VISIBLE)} {os.environ['OMP_NUM_THREADS']} {os.getpid()}")


def test_the_process_of_a_cell_gets_its_accelerators_and_threads(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    tasks = [Task(path.name, partial(note, path), path) for path in paths]
    variables = environments(["GPU-7", "GPU-9"], SchedulerSettings())
    outcomes = list(carry_out_beside(tasks, lambda name: None, variables, threads=3))
    assert {outcome.status for outcome in outcomes} == {"finished"}
    seen = [(path / "seen").read_text().split() for path in paths]
    assert sorted(words[0] for words in seen) == ["GPU-7", "GPU-9"]
    assert {words[1] for words in seen} == {"3"}
    assert VISIBLE not in os.environ


def test_the_command_itself_uses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "3,5")
    with one_visible_device(["3", "5"]):
        assert os.environ[VISIBLE] == "3"
    assert os.environ[VISIBLE] == "3,5"
    monkeypatch.delenv(VISIBLE)
    with one_visible_device(["0", "1"]):
        assert os.environ[VISIBLE] == "0"
    assert VISIBLE not in os.environ
