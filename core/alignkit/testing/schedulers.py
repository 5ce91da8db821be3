"""Conformance tests of schedulers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from alignkit.contract import Outcome, Task
from alignkit.errors import RunFailedError
from alignkit.testing.installed import InstalledPlugin


class SchedulerConformance(InstalledPlugin):
    """Tests of one installed scheduler; set ``name``, and ``settings`` with which two tasks have room, in own processes."""

    group = "align.schedulers"
    settings: ClassVar[Mapping[str, Any]] = {"jobs": 2}

    def setup_method(self) -> None:
        """Hear Ctrl-C, and let the tasks' processes hear it: a shell's background jobs ignore it."""
        self._before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def teardown_method(self) -> None:
        """Put back what was heard before."""
        signal.signal(signal.SIGINT, self._before)

    def test_every_task_has_one_outcome(self, tmp_path: Path) -> None:
        """Tasks are begun and end once, with the results in their directories; a failed one does not stop the others.

        The same scheduler then carries out further tasks, as for the next rung of a race or stage of a pipeline.
        """
        started, outcomes = self._run(tmp_path, [_write, _fail, _die, _write])
        (later,) = self.scheduler.run(
            [Task("later", partial(_write, tmp_path / "later"), tmp_path)], started.append, print
        )
        assert (started.pop(), later.name, later.status) == ("later", "later", "finished"), later.error
        assert sorted(set(started)) == ["0", "1", "2", "3"], f"started() was called for {started}"
        assert sorted(outcome.name for outcome in outcomes) == sorted(set(started)), "every task must have one outcome"
        found = {outcome.name: outcome for outcome in outcomes}
        assert [found[name].status for name in "0123"] == ["finished", "failed", "failed", "finished"]
        assert "no luck" in str(found["1"].error), f"the task's own error is missing: {found['1'].error}"
        assert found["2"].error, "the error of a task whose process was killed must say so"
        assert all((tmp_path / name / "result").read_text() == str(Path.cwd()) for name in "03")

    def test_an_interrupt_stops_everything(self, tmp_path: Path) -> None:
        """Ctrl-C reaches the running task, which ends; no other is begun, and no process is left."""
        threading.Thread(target=_appears, args=(tmp_path / "0", signal.SIGINT)).start()
        _, outcomes = self._run(tmp_path, [_wait, _write], jobs=1)
        assert [(outcome.name, outcome.status) for outcome in outcomes] == [("0", "interrupted")]
        assert not (tmp_path / "1").exists(), "a task was begun after the interrupt, or beside another with jobs: 1"
        assert _gone(tmp_path / "0"), "the interrupted task's process is left"

    def test_a_closed_generator_leaves_no_process(self, tmp_path: Path) -> None:
        """If the command fails in between, the running tasks are stopped."""
        outcomes = self._outcomes(tmp_path, [_write, _wait], print)
        assert next(outcomes).name == "0"
        _appears(tmp_path / "1")
        outcomes.close()
        assert _gone(tmp_path / "1"), "the running task's process is left"

    def _outcomes(self, directory: Path, works: list[Any], started: Callable[[str], None], **settings: Any) -> Any:
        plugin = self._load()
        self.scheduler = plugin(plugin.settings_type.model_validate({**self.settings, **settings}))
        self.scheduler.check()
        paths = [directory / str(i) for i in range(len(works))]
        tasks = [Task(path.name, partial(work, path), path) for path, work in zip(paths, works, strict=True)]
        return self.scheduler.run(tasks, started, print)

    def _run(self, directory: Path, works: list[Any], **settings: Any) -> tuple[list[str], list[Outcome]]:
        started: list[str] = []
        outcomes: list[Outcome] = []
        with suppress(KeyboardInterrupt):
            for outcome in self._outcomes(directory, works, started.append, **settings):
                assert outcome.name in started, f"{outcome.name} ended and was not started"
                outcomes += [outcome] if outcome.status != "waiting" else []
        return started, outcomes


def _write(path: Path) -> None:
    path.mkdir()
    (path / "result").write_text(str(Path.cwd()))


def _fail(_path: Path) -> None:
    raise RunFailedError("no luck")


def _die(_path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _wait(path: Path) -> None:
    path.mkdir()
    (path / str(os.getpid())).touch()
    for _ in range(6000):
        time.sleep(0.1)  # an interrupt of some schedulers is seen between two statements only


def _appears(path: Path, then: int = 0) -> None:
    """Wait until a task runs in ``path``, and send the signal ``then`` to this process."""
    until = time.monotonic() + 600
    while not (path.is_dir() and list(path.iterdir())) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(os.getpid(), then)


def _gone(path: Path) -> bool:
    """Return whether the process that waits in ``path`` has ended, or is this one."""
    (process,) = (file.name for file in path.iterdir())
    for _ in range(1200):
        state = Path(f"/proc/{process}/stat")
        with suppress(OSError):
            if int(process) == os.getpid() or not state.exists() or ") Z" in state.read_text():
                return True
        time.sleep(0.05)
    return False
