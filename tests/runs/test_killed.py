"""Commands killed at a file operation: the same command works afterwards, and nothing half written stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from alignkit.rundir.directory import RunDir
from alignkit.system.files import is_leftover, remove_leftovers

from tests.helpers.data import pairs, write_jsonl
from tests.helpers.kills import Align, Ended

SHORT = "max_steps=1 save_strategy=steps save_steps=1".split()
FEW = ["data.limit=40", "data.eval_limit=8", "eval.samples=0", "run.plots=false", *(f"train.{key}" for key in SHORT)]
RUN = ["run", "--method", "orpo", "--name", "x", *(part for key in FEW for part in ("--set", key))]


@pytest.fixture(scope="module")
def align() -> Iterator[Align]:
    with Align() as commands:
        yield commands


def left_behind(where: Path) -> list[str]:
    return [str(path.relative_to(where)) for path in where.rglob(".*") if is_leftover(path)]


@pytest.mark.parametrize("at", ["os.rename runs/x/.run.yaml", "os.rename runs/x/.run.json"])
def test_a_run_killed_before_it_trains_can_be_started_again(align: Align, at: str, tmp_path: Path) -> None:
    assert align(*RUN, cwd=tmp_path, kill_at=at).killed
    assert left_behind(tmp_path)
    status = align("status", "runs/x", cwd=tmp_path)
    assert "dead" in status.out or "not a run directory" in status.err
    again = align(*RUN, cwd=tmp_path) if "yaml" in at else align("resume", "runs/x", cwd=tmp_path)
    assert again.code == 0, again.err
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("at", ["os.rename runs/x/checkpoints", "os.rename runs/x/.model.partial"])
def test_a_run_killed_while_it_saves_is_resumed(align: Align, at: str, tmp_path: Path) -> None:
    assert align(*RUN, cwd=tmp_path, kill_at=at).killed
    assert "dead" in align("status", "runs/x", cwd=tmp_path).out
    resumed = align("resume", "runs/x", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert left_behind(tmp_path) == []
    assert RunDir(tmp_path / "runs" / "x").status == "finished"


def fix(align: Align, where: Path, at: int = 0) -> Ended:
    return align("data", "check", "rows.jsonl", "--fix", "out/clean.jsonl", cwd=where, kill_at=at)


def test_a_cleaned_copy_and_its_log_appear_together(align: Align, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [*pairs(4), *pairs(2)])
    (tmp_path / "out").mkdir()
    whole = fix(align, tmp_path)
    assert whole.code == 0, whole.err
    expected = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert expected.keys() == {"clean.jsonl", "clean.jsonl.dropped.jsonl"}
    for number in range(1, len(whole.operations) - 1):
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").mkdir()
        assert fix(align, tmp_path, number).killed
        assert not (tmp_path / "out" / "clean.jsonl").exists()
        assert fix(align, tmp_path).code == 0
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == expected
    assert "exists already" in fix(align, tmp_path).err


@pytest.mark.parametrize("command", ["sweep", "pipeline"])
def test_a_sweep_or_pipeline_killed_before_its_record_can_be_started_again(
    align: Align, command: str, tmp_path: Path
) -> None:
    stages = [{"name": "x", "method": "sft"}]
    sections = {"data": {"limit": 40, "eval_limit": 8}, "train": {"max_steps": 1}, "run": {"plots": False}}
    values = {"stages": stages, "eval": {"samples": 0, "suites": ["prefs"]}, **sections}
    (tmp_path / "p.yaml").write_text(json.dumps(values))
    own = ["p.yaml"] if command == "pipeline" else ["--over", "lambda=0.1", *RUN[1:3], *RUN[5:]]
    arguments = [command, *own, "--name", "x"]
    for at in (f"open runs/x/.{command}", "os.rename runs/x/."):  # the lock is made, the first file is written
        assert align(*arguments, cwd=tmp_path, kill_at=at).killed
        assert left_behind(tmp_path)
    again = align(*arguments, cwd=tmp_path)
    assert again.code == 0, again.err
    assert left_behind(tmp_path) == []


def test_what_killed_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    names = [f".a.{2**22 - 1}-beef.tmp", f".a.{os.getpid()}-beef.tmp", ".lock", "notes.txt"]
    for name in names:
        (tmp_path / name).touch()
    for name in (".model.partial", ".model.old", ".plots.old", "model", ".partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], "model", "plots"}


def test_files_of_others_survive_a_run_that_never_begins(align: Align, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    (run / "run.yaml").touch()
    (run / "notes.txt").write_text("mine")
    failed = align(*RUN, "--set", "data.source=nowhere.jsonl", cwd=tmp_path)
    assert failed.code == 2
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("what", ["run.json", "."])
def test_a_record_removed_in_mid_run_is_written_again_and_a_removed_directory_ends_the_run(
    align: Align, what: str, tmp_path: Path
) -> None:
    (tmp_path / "remover.py").write_text(
        "import shutil\nfrom pathlib import Path\n"
        "def reward(prompt, answer):\n"
        "    run = Path('runs/x')\n"
        f"    shutil.rmtree(run, ignore_errors=True) if '{what}' == '.' else (run / 'run.json').unlink(missing_ok=True)\n"
        "    return 0.0\n"
    )
    own = ["--method", "grpo", "--set", "reward=remover:reward", "--set", "max_new_tokens=4", "--set", "eval.suites=[]"]
    done = align(*RUN, *own, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    if what == ".":
        assert done.code == 1
        assert "runs/x was removed while the run was using it" in done.err
        assert "--debug" not in done.err
        assert not (tmp_path / "runs" / "x" / "run.json").exists()
    else:
        assert done.code == 0, done.err
        record = json.loads((tmp_path / "runs" / "x" / "run.json").read_text())
        assert record["status"] == "finished"
        assert record["config"]["run"]["name"] == "x"
