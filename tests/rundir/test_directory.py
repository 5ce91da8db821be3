"""The run directory: name, existing content, record, lock."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from alignkit.errors import CheckpointError, ConfigError
from alignkit.rundir.directory import RunDir
from alignkit.rundir.metrics import MetricsLog
from alignkit.system.files import write_text

# ------------------------------------------------------------------------------------------------- names


def test_a_name_of_our_own_comes_from_the_method_and_the_time(tmp_path: Path) -> None:
    first, second = (RunDir.create(tmp_path / "runs", method="dist:orpo").path for _ in range(2))
    assert first.name.startswith("dist-orpo-20")
    assert first.is_dir()
    assert second.is_dir()
    assert first != second  # within one second as well


@pytest.mark.parametrize("name", ["..", "../other", "a/../..", ".", "", "  ", "/tmp/elsewhere", "a\0b"])
def test_a_name_that_leaves_its_parent_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"not a valid name|points outside"):
        RunDir.create(tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="points outside"):
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
    with pytest.raises(ConfigError, match="cannot create the run directory"):
        RunDir.create(tmp_path / parent, "a", repeat=repeat)


def test_a_file_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(ConfigError, match="a is a file"):
        RunDir.create(tmp_path, "a")


@pytest.mark.parametrize("mode", [0o500, 0o555], ids=["closed", "read-only"])
def test_no_permission_is_a_clear_error(tmp_path: Path, mode: int) -> None:
    (tmp_path / "runs").mkdir(mode=mode)
    root = os.geteuid() == 0
    if root:  # root may write anywhere: become another user (pytest's directories are open to root only)
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


# ------------------------------------------------------------------------------------------------- lock

HOLD = (
    "import sys, time; from alignkit.rundir.directory import RunDir\n"
    "with RunDir(sys.argv[1]).lock():\n"
    "    print('held', flush=True); time.sleep(3600)\n"
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
    # The holder was killed and could not clean up: its lock can be taken.
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
    (run.path / ".lock").write_text(f"{os.getpid()}\n")  # even if its process id is in use again
    assert run.locked_by() is None
    with run.lock():
        assert run.locked_by() == os.getpid()
