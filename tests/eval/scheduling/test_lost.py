"""Cells whose process, node or job is lost, and commands that are killed: nothing is lost, and no process is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
from alignkit import Outcome, RunConfig, Scheduler
from alignkit.testing import SchedulerConformance
from alignkit_eval.scheduling.carry import carry_out_all
from alignkit_eval.scheduling.choice import make_ready, open_scheduler
from alignkit_eval.sweeps.grid import SweepCell
from alignkit_eval.sweeps.manifest import Manifest

from tests.helpers.scheduling import appears, gone, second_time, task

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def ready(name: str, **options: Any) -> Scheduler[Any]:
    scheduler = open_scheduler(name, options)
    make_ready(scheduler)
    return scheduler


def carried_out(scheduler: Scheduler[Any], path: Path) -> tuple[list[Outcome], list[str]]:
    said: list[str] = []
    return list(scheduler.run([task(path, second_time)], lambda name: None, said.append)), said


def written(scheduler: Scheduler[Any], path: Path) -> tuple[list[str], list[str]]:
    """Return the status of a cell in sweep.json after each event, and what was said."""
    cell = SweepCell("cell", {}, 0, RunConfig(method="orpo"), path)
    manifest, said, events = Manifest(path.parent, [cell], []), list[str](), list[str]()

    def read() -> None:
        events.append(json.loads((path.parent / "sweep.json").read_text())["cells"][0]["status"])

    def started(name: str) -> None:
        manifest.started(name)
        read()

    for outcome in carry_out_all(scheduler, [task(path, second_time)], started=started, say=said.append):
        manifest.ended(outcome)
        read()
    return events, said


def when_it_runs(path: Path, act: Any) -> None:
    def wait() -> None:
        appears(path / "first")
        act(*map(int, (path / "first").read_text().split()))

    threading.Thread(target=wait, daemon=True).start()


class TestRay(SchedulerConformance):
    """The conformance tests that third parties run, and lost workers, of one cluster: it takes longer to start than a test."""

    name = "ray"
    settings: ClassVar[dict[str, Any]] = {"retries": 0}

    @pytest.fixture(autouse=True)
    def _cluster(self, ray_cluster: Any) -> None:
        self.settings["address"] = ray_cluster.address

    def test_a_cell_whose_workers_die_again_and_again_fails(self, tmp_path: Path, ray_cluster: Any) -> None:
        when_it_runs(tmp_path / "cell", lambda process, parent: os.kill(process, signal.SIGKILL))
        (outcome,), _ = carried_out(ready("ray", address=ray_cluster.address, retries=0), tmp_path / "cell")
        assert (outcome.status, outcome.error) == ("failed", "its worker was lost (WorkerCrashedError), 1 times")

    def test_a_cell_whose_worker_died_waits_and_runs_again(self, tmp_path: Path, ray_cluster: Any) -> None:
        when_it_runs(tmp_path / "cell", lambda process, parent: os.kill(process, signal.SIGKILL))
        events, (said,) = written(ready("ray", address=ray_cluster.address), tmp_path / "cell")
        assert events == ["running", "pending", "running", "finished"]
        assert said == "cell: its worker was lost (WorkerCrashedError); resumed elsewhere (1 of at most 3 times)"


def test_a_job_that_is_preempted_saves_a_checkpoint_and_is_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    # Slurm's warning before the time limit or preemption.
    when_it_runs(tmp_path / "cell", lambda process, parent: os.kill(process, signal.SIGUSR2))
    events, said = written(ready("slurm", cluster="local"), tmp_path / "cell")
    assert events == ["running", "pending", "running", "finished"]
    assert (tmp_path / "cell" / "saved").exists()
    assert said == ["cell: checkpoint saved; submitted again"]


COMMAND = """
import sys
from pathlib import Path
from alignkit_eval.scheduling.choice import make_ready, open_scheduler
from tests.helpers.scheduling import second_time, task
if __name__ == "__main__":
    scheduler = open_scheduler("local", {"jobs": 2})
    make_ready(scheduler)
    for outcome in scheduler.run([task(Path(path), second_time) for path in sys.argv[1:]], lambda name: None, print):
        print(outcome)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_cells_of_a_command_that_is_killed_save_a_checkpoint_and_end(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    paths = [tmp_path / name for name in ("a", "b")]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = subprocess.Popen(
        [sys.executable, "command.py", *map(str, paths)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    )
    for each in paths:
        appears(each / "first")
    command.send_signal(number)
    assert command.wait() != 0
    for each in paths:
        assert gone(int((each / "first").read_text().split()[0]))
        assert (each / "saved").exists() == (number == signal.SIGKILL)  # SIGINT is the run's own to handle
