"""Commands killed at a file operation: the same command works afterwards, and nothing half written stays."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from alignkit.rundir.directory import RunDir
from alignkit.system.files import is_leftover, remove_leftovers

from tests.helpers.data import pairs, write_jsonl
from tests.helpers.forked import At, Ended
from tests.helpers.runs import align

SHORT = "max_steps=1 save_strategy=steps save_steps=1".split()
FEW = ["data.limit=40", "data.eval_limit=8", "eval.samples=0", "run.plots=false", *(f"train.{key}" for key in SHORT)]
RUN = ["run", "--method", "orpo", "--name", "x", *(part for key in FEW for part in ("--set", key))]


def left_behind(where: Path) -> list[str]:
    return [str(path.relative_to(where)) for path in where.rglob(".*") if is_leftover(path)]


@pytest.mark.parametrize("at", ["os.rename runs/x/.run.yaml", "os.rename runs/x/.run.json"])
def test_a_run_killed_before_it_trains_can_be_started_again(at: str, tmp_path: Path) -> None:
    assert align(*RUN, cwd=tmp_path, at=At(at)).killed
    assert left_behind(tmp_path)
    status = align("status", "runs/x", cwd=tmp_path)
    assert "dead" in status.stdout or "not a run directory" in status.stderr
    again = align(*RUN, cwd=tmp_path) if "yaml" in at else align("resume", "runs/x", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    "at", ["os.rename runs/x/checkpoints", "os.rename runs/x/.model.partial", "os.rename runs/x/model/.README.md"]
)
def test_a_run_killed_while_it_saves_is_resumed(at: str, tmp_path: Path) -> None:
    assert align(*RUN, cwd=tmp_path, at=At(at)).killed
    assert "dead" in align("status", "runs/x", cwd=tmp_path).stdout
    resumed = align("resume", "runs/x", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert left_behind(tmp_path) == []
    assert RunDir(tmp_path / "runs" / "x").status == "finished"
    assert (tmp_path / "runs" / "x" / "model" / "README.md").is_file()


def fix(where: Path, at: At | None = None) -> Ended:
    return align("data", "check", "rows.jsonl", "--fix", "out/clean.jsonl", cwd=where, at=at)


def test_a_cleaned_copy_and_its_log_appear_together(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [*pairs(4), *pairs(2)])
    (tmp_path / "out").mkdir()
    whole = fix(tmp_path)
    assert whole.returncode == 0, whole.stderr
    expected = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert expected.keys() == {"clean.jsonl", "clean.jsonl.dropped.jsonl"}
    for number in range(1, len(whole.operations) - 1):
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").mkdir()
        assert fix(tmp_path, At(number=number)).killed
        assert not (tmp_path / "out" / "clean.jsonl").exists()
        assert fix(tmp_path).returncode == 0
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == expected
    assert "exists already" in fix(tmp_path).stderr


@pytest.mark.parametrize("command", ["sweep", "pipeline"])
def test_a_sweep_or_pipeline_killed_before_its_record_can_be_started_again(command: str, tmp_path: Path) -> None:
    stages = [{"name": "x", "method": "sft"}]
    sections = {"data": {"limit": 40, "eval_limit": 8}, "train": {"max_steps": 1}, "run": {"plots": False}}
    values = {"stages": stages, "eval": {"samples": 0, "suites": ["prefs"]}, **sections}
    (tmp_path / "p.yaml").write_text(json.dumps(values))
    own = ["p.yaml"] if command == "pipeline" else ["--over", "lambda=0.1", *RUN[1:3], *RUN[5:]]
    arguments = [command, *own, "--name", "x"]
    for at in (f"open runs/x/.{command}", "os.rename runs/x/."):  # the lock is made, the first file is written
        assert align(*arguments, cwd=tmp_path, at=At(at)).killed
        assert left_behind(tmp_path)
    again = align(*arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
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


def test_files_of_others_survive_a_run_that_never_begins(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    (run / "run.yaml").touch()
    (run / "notes.txt").write_text("mine")
    failed = align(*RUN, "--set", "data.source=nowhere.jsonl", cwd=tmp_path)
    assert failed.returncode == 2
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("what", ["run.json", "."])
def test_a_record_removed_in_mid_run_is_written_again_and_a_removed_directory_ends_the_run(
    what: str, tmp_path: Path
) -> None:
    (tmp_path / "remover.py").write_text(
        "import shutil\nfrom pathlib import Path\n"
        "def reward(prompt, answer):\n"
        "    run = Path('runs/x')\n"
        f"    shutil.rmtree(run, ignore_errors=True) if '{what}' == '.' else (run / 'run.json').unlink(missing_ok=True)\n"
        "    return 0.0\n"
    )
    own = ["--set", "reward=remover:reward", "--set", "max_new_tokens=4", "--set", "eval.suites=[]"]
    done = align("run", "--method", "grpo", *RUN[3:], *own, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    if what == ".":
        assert done.returncode == 1
        assert "runs/x was removed while the run was using it" in done.stderr
        assert "--debug" not in done.stderr
        assert not (tmp_path / "runs" / "x" / "run.json").exists()
    else:
        assert done.returncode == 0, done.stderr
        record = json.loads((tmp_path / "runs" / "x" / "run.json").read_text())
        assert record["status"] == "finished"
        assert record["config"]["run"]["name"] == "x"
