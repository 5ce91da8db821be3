"""The run directory: names, whole-or-nothing files, the metrics log after a crash, the lock, the environment."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from alignkit import Contrast, Estimate, SuiteResult
from alignkit.errors import CheckpointError, ConfigError
from alignkit.rundir.directory import RunDir
from alignkit.rundir.evaluations import read_evaluation, write_evaluation
from alignkit.rundir.metrics import MetricsLog
from alignkit.system.environment import environment, git_revision
from alignkit.system.files import atomic_path, to_json, write_json, write_jsonl, write_text

# ------------------------------------------------------------------------------------------------- names


def test_a_name_of_our_own_comes_from_the_method_and_the_time(tmp_path: Path) -> None:
    first, second = (RunDir.create(tmp_path / "runs", method="dist:orpo").path for _ in range(2))
    assert first.name.startswith("dist-orpo-20")
    assert first.is_dir()
    assert second.is_dir()
    assert first != second  # within one second as well


@pytest.mark.parametrize("name", ["..", "../other", "a/../..", ".", "", "  ", "/tmp/elsewhere", "a\0b"])
def test_a_name_that_leaves_its_parent_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot name|leads out"):
        RunDir.create(tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out"):
        RunDir.create(tmp_path / "runs", "link")


def test_a_name_may_have_a_directory_of_its_own(tmp_path: Path) -> None:
    assert RunDir.create(tmp_path, "sweep/cell-1").path == tmp_path / "sweep" / "cell-1"


def test_a_finished_run_is_never_overwritten(tmp_path: Path) -> None:
    RunDir.create(tmp_path, "a").update_record(status="finished", steps=3)
    with pytest.raises(ConfigError, match="finished run") as caught:
        RunDir.create(tmp_path, "a")
    assert str(tmp_path / "a") in str(caught.value)
    assert RunDir(tmp_path / "a").read_record() == {"status": "finished", "steps": 3}


def test_an_unfinished_run_with_a_checkpoint_is_kept_and_how_to_resume_said(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a")
    run.update_record(status="interrupted")
    (run.checkpoints / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(ConfigError, match="align resume"):
        RunDir.create(tmp_path, "a")
    assert (run.checkpoints / "checkpoint-5").is_dir()


def test_the_remains_of_a_failed_attempt_give_way_and_foreign_files_stay(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a")
    run.update_record(status="failed")
    MetricsLog(run.metrics).append({"step": 1})
    write_text(run.plots / "loss.png", "old")
    (run.checkpoints / ".partial").mkdir(parents=True)
    write_text(run.path / "notes.txt", "mine")
    again = RunDir.create(tmp_path, "a")
    assert sorted(path.name for path in again.path.iterdir()) == ["notes.txt"]


def test_a_directory_that_is_no_run_is_not_touched(tmp_path: Path) -> None:
    write_text(tmp_path / "papers" / "thesis.tex", "years of work")
    with pytest.raises(ConfigError, match="not a run directory"):
        RunDir.create(tmp_path, "papers")
    assert (tmp_path / "papers" / "thesis.tex").read_text() == "years of work"


def test_a_repeat_takes_the_next_free_name(tmp_path: Path) -> None:
    names = [RunDir.create(tmp_path, "a", repeat=True).path.name for _ in range(3)]
    assert names == ["a", "a-2", "a-3"]


@pytest.mark.parametrize("parent", ["file", "file/below", "/proc/nowhere"])
@pytest.mark.parametrize("repeat", [False, True])
def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path, parent: str, repeat: bool) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make the run directory"):
        RunDir.create(tmp_path / parent, "a", repeat=repeat)


def test_a_file_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(ConfigError, match="a is a file"):
        RunDir.create(tmp_path, "a")


@pytest.mark.parametrize("mode", [0o500, 0o555], ids=["closed", "read-only"])
def test_no_permission_is_a_clear_error(tmp_path: Path, mode: int) -> None:
    (tmp_path / "runs").mkdir(mode=mode)
    root = os.geteuid() == 0
    if (
        root
    ):  # who may write anywhere: become nobody for the moment (pytest's own directories are closed to all but root)
        for parent in (tmp_path, *tmp_path.parents):
            if "pytest-" in str(parent):
                parent.chmod(parent.stat().st_mode | 0o055)
        os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match="ermission denied"):
            RunDir.create(tmp_path / "runs", "a")
    finally:
        if root:
            os.seteuid(0)


def test_opening_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no run\.json"):
        RunDir.open(tmp_path)


def test_the_newest_finished_run(tmp_path: Path) -> None:
    assert RunDir.newest_finished(tmp_path) is None
    for age, (name, status) in enumerate([("new", "finished"), ("old", "finished"), ("failed", "failed")]):
        run = RunDir.create(tmp_path, name)
        run.update_record(status=status)
        os.utime(run.record, (1e9 - age, 1e9 - age))
    os.utime(tmp_path / "failed" / "run.json")
    newest = RunDir.newest_finished(tmp_path)
    assert newest is not None
    assert newest.path.name == "new"


# ------------------------------------------------------------------------------------------------- files


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"status": "running"})
    with pytest.raises(TypeError, match="object as JSON"):
        write_json(path, {"status": object()})

    def half_a_write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text('{"status": "fin')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_a_write()
    assert [left.name for left in tmp_path.iterdir()] == ["run.json"]
    assert json.loads(path.read_text()) == {"status": "running"}


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"status": "running"})
    script = (
        "import os, signal, sys; from pathlib import Path; from alignkit.system.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -signal.SIGKILL
    assert json.loads(path.read_text()) == {"status": "running"}


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "atomic", "a")
    (tmp_path / "plain").write_text("a")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


class Spot(NamedTuple):
    place: Path
    value: float


def test_json_takes_what_a_run_has_and_nothing_that_is_not_json(tmp_path: Path) -> None:
    value = {
        "nan": math.nan,
        "inf": [math.inf, -math.inf],
        "numpy": np.float32(0.5),
        "array": np.array([[1, 2]]),
        "tensor": torch.tensor([0.25, math.nan]),
        "interval": Estimate(0.5, None, 0.75),
        "spot": Spot(Path("a/b"), 1.0),
        "set": {"b", "a"},
        3: True,
    }
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "inf": [None, None],
        "numpy": 0.5,
        "array": [[1, 2]],
        "tensor": [0.25, None],
        "interval": {"value": 0.5, "low": None, "high": 0.75},
        "spot": {"place": "a/b", "value": 1.0},
        "set": ["a", "b"],
        "3": True,
    }
    assert to_json(value)["tensor"] == [0.25, None]


def test_lines_of_json(tmp_path: Path) -> None:
    rows = [{"text": "a\nb\u2028c"}, {"x": math.nan}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    lines = (tmp_path / "rows.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == [{"text": "a\nb\u2028c"}, {"x": None}]


def test_an_evaluation_comes_back_as_it_was(tmp_path: Path) -> None:
    metrics = {"accuracy_sum": Estimate(0.5, 0.25, 0.75), "ece": Estimate(0.1), "odd": Estimate(math.inf)}
    result = SuiteResult("prefs", 2, 1, metrics, [{"id": "a"}, {"id": "b"}], {"bins": 3})
    contrast = Contrast("accuracy_sum", "credit_sum", where={"task": "facts"}, verdict=("accuracy_mean",))
    result = replace(result, contrasts=[contrast], provenance={"weights": "abc"})
    path = write_evaluation(tmp_path / "eval", result, target="demo")
    assert list(json.loads(path.read_text())) == [
        "suite",
        "target",
        "n",
        "clusters",
        "metrics",
        "settings",
        "contrasts",
        "provenance",
    ]
    back = read_evaluation(tmp_path / "eval", "prefs")
    assert (back.n, back.clusters, back.items, back.settings) == (2, 1, [{"id": "a"}, {"id": "b"}], {"bins": 3})
    assert (back.contrasts, back.provenance) == ([contrast], {"weights": "abc"})
    assert {k: back.metrics[k] for k in ("accuracy_sum", "ece")} == {k: metrics[k] for k in ("accuracy_sum", "ece")}
    assert math.isnan(back.metrics["odd"].value)
    with pytest.raises(ConfigError, match="suite 'perplexity'"):
        read_evaluation(tmp_path / "eval", "perplexity")


def test_the_record_is_updated_key_by_key(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a")
    assert run.read_record() == {}
    assert run.status is None
    run.update_record(status="running", train={"loss": math.nan})
    assert run.update_record(status="finished")["status"] == run.status == "finished"
    assert run.read_record()["train"] == {"loss": None}
    run.record.write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json"):
        run.read_record()


# ------------------------------------------------------------------------------------------------- metrics log


def test_the_log_is_cut_back_to_a_step_and_continues(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.cut_back(0)  # nothing was logged yet
    for step in (5, 10, 15):
        log.append({"step": step, "loss": math.nan if step == 10 else 1.0})
    with log.path.open("a") as file:
        file.write('{"step": 20, "lo')  # killed in the middle of a line
    log.cut_back(10)
    log.append({"step": 11})
    assert log.read() == [{"step": 5, "loss": 1.0}, {"step": 10, "loss": None}, {"step": 11}]


def test_a_half_written_line_is_dropped_even_within_a_character(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    with log.path.open("ab") as file:
        file.write('{"step": 2, "é'.encode()[:-1])
    assert log.read() == [{"step": 1}]
    log.cut_back(2)
    assert log.path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(("line", "message"), [("{broken", "not valid JSON"), ("[1]", "expected a JSON object")])
def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(CheckpointError, match=rf"metrics\.jsonl:2: {message}"):
        MetricsLog(path).cut_back(3)


# ------------------------------------------------------------------------------------------------- lock

HOLD = (
    "import sys, time; from alignkit.rundir import RunDir\n"
    "with RunDir(sys.argv[1]).lock():\n"
    "    print('held', flush=True); time.sleep(60)\n"
)


def test_two_processes_never_train_in_one_directory(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a")
    run.update_record(status="running")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            assert run.locked_by() == holder.pid
            with pytest.raises(ConfigError, match=f"in use by process {holder.pid}"), run.lock():
                pytest.fail("the lock was given twice")
            with pytest.raises(ConfigError, match=f"in use by process {holder.pid}"):
                RunDir.create(tmp_path, "a")
        finally:
            holder.kill()
    # The holder was killed and could not tidy up: its lock is taken over.
    assert (run.path / ".lock").exists()
    assert run.locked_by() is None
    with run.lock():
        assert run.locked_by() == os.getpid()
    assert not (run.path / ".lock").exists()
    assert run.locked_by() is None


def test_a_lock_is_given_once_within_a_process_and_freed_by_an_error(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a")

    def fails() -> None:
        with run.lock():
            with pytest.raises(ConfigError, match="in use"), run.lock():
                pytest.fail("the lock was given twice")
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fails()
    with run.lock():
        pass


def test_a_stale_lock_file_is_no_lock(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a")
    (run.path / ".lock").write_text(f"{os.getpid()}\n")  # even where its number belongs to a living process again
    assert run.locked_by() is None
    with run.lock():
        assert run.locked_by() == os.getpid()


# ------------------------------------------------------------------------------------------------- environment


def test_the_environment_is_known_and_json() -> None:
    found = environment()
    assert (
        found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] == torch.__version__
    )
    assert {"alignkit", "transformers", "trl", "peft", "datasets", "python"} <= found["versions"].keys()
    assert found["hardware"]["cores"] >= 1
    assert len(found["hardware"]["gpus"]) == torch.cuda.device_count()
    assert json.loads(json.dumps(found)) == found


def test_the_revision_of_a_repository_and_of_none(tmp_path: Path) -> None:
    assert git_revision(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_revision(tmp_path) == {"revision": head, "dirty": False}
    (tmp_path / "file").write_text("two")
    assert git_revision(tmp_path) == {"revision": head, "dirty": True}


def test_a_machine_without_git_has_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(Path(__file__).parent) is None
