"""How a run of several processes ended, in its record: what its launcher writes, and what a process keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignkit.errors import RunFailedError
from alignkit.rundir.directory import RunDir
from alignkit.runs.recorder import RunRecorder
from alignkit.system.files import write_json
from alignkit.system.lock import file_lock
from alignkit.system.manifest import sealed
from alignkit.training.session import Session
from alignkit_cluster.launcher import conclude
from alignkit_cluster.workers import Verdict

from tests.helpers.engine import configuration

MEMORY = "rank 0: out of memory"
KILLED = "rank 1 was killed by SIGKILL"


def run_of(place: Path, status: str, **more: str) -> RunDir:
    place.mkdir(exist_ok=True)
    write_json(place / "run.json", sealed({"status": status, **more}))
    return RunDir(place)


@pytest.mark.parametrize(
    ("before", "verdict", "after"),
    [
        ("running", Verdict(1, MEMORY), "failed"),  # the first process had no memory left to write it
        ("running", Verdict(1, KILLED, unrecorded=True), "failed"),
        ("failed", Verdict(1, KILLED, unrecorded=True), "failed"),
        ("running", Verdict(143, "stopped before training", head="Interrupted"), "interrupted"),
    ],
)
def test_no_run_is_left_running(tmp_path: Path, before: str, verdict: Verdict, after: str) -> None:
    run = run_of(tmp_path / "run", before)
    assert conclude(verdict._replace(run=run.path)) == verdict.code
    record = run.read_record()
    assert (record["status"], record["error"]) == (after, verdict.message)


@pytest.mark.parametrize("status", ["failed", "interrupted", "finished"])
def test_what_a_worker_wrote_is_kept(tmp_path: Path, status: str) -> None:
    run = run_of(tmp_path / "run", status, error="its own words")
    conclude(Verdict(1, MEMORY, run=run.path))
    assert run.read_record()["error"] == "its own words"


def test_a_first_process_on_another_machine_keeps_its_record(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "running")
    with file_lock(tmp_path / "run/.lock", wait=False):
        conclude(Verdict(143, "stopped at step 3", head="Interrupted", run=run.path))
    assert run.status == "running"


def test_a_run_that_was_killed_before_it_trained_leaves_no_directory(tmp_path: Path) -> None:
    for name in ("new", "trained"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.yaml").write_text("method: orpo\n")
    (tmp_path / "trained/checkpoints/checkpoint-1").mkdir(parents=True)
    for name in ("new", "trained"):
        conclude(Verdict(1, KILLED, run=tmp_path / name, unrecorded=True))
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_a_damaged_record_does_not_hide_why_the_run_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path / "run", "running")
    run.record.write_text("{")
    assert conclude(Verdict(1, MEMORY, run=run.path)) == 1
    assert capsys.readouterr().err == f"Error: {MEMORY}\n"


@pytest.mark.parametrize("lost", [True, False])
def test_the_reason_of_another_machine_is_kept(tmp_path: Path, lost: bool) -> None:
    """Its launcher wrote it into the record; this process only lost the connection, or has an error of its own."""
    run = run_of(tmp_path / "run", "running")
    recorder = RunRecorder(run, Session.open(configuration("orpo")), quiet=True)
    error = RuntimeError("gloo/transport: connection closed by peer") if lost else RuntimeError("its own")

    def fail() -> None:
        with recorder.open(), recorder.outcome():
            run.update_record(status="failed", error=KILLED)
            raise error

    with pytest.raises((RuntimeError, RunFailedError)):
        fail()
    assert run.read_record()["error"] == (KILLED if lost else "RuntimeError: its own")
