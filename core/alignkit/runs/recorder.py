"""Records of a run while it trains: its log, run.json, metrics.jsonl and the plugins' broadcast hooks."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from alignkit.display.console import Console
from alignkit.errors import InterruptedRun
from alignkit.rundir.directory import RunDir
from alignkit.rundir.metrics import MetricsLog
from alignkit.system.distributed import rank
from alignkit.system.quiet import quiet_libraries
from alignkit.system.stopwatch import Stopwatch
from alignkit.training.checkpoints import step_of
from alignkit.training.session import Session

_LOG_FORMAT = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")


class RunRecorder:
    """Keeps the record of one run. Only the first process (rank 0) writes and prints; on the others nothing happens.

    ``session`` holds the plugins, which hear of the run's start, log records, checkpoints and end. With ``quiet``, nothing
    is printed, only logged.
    """

    def __init__(self, directory: RunDir, session: Session, *, quiet: bool = False) -> None:
        self.directory, self.session = directory, session
        self.first = rank() == 0
        self.console = Console(quiet=quiet or not self.first)
        self.started = time.time()
        self._clock = Stopwatch()
        self._metrics = MetricsLog(directory.metrics)
        self._warned: set[str] = set()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the directory's lock, and send every library's log lines to its train.log."""
        if not self.first:
            yield
            return
        with self.directory.lock():
            self.console.log_to(self.directory.log)
            handler = logging.FileHandler(self.directory.log, delay=True)
            handler.setFormatter(_LOG_FORMAT)
            quiet_libraries(handler)
            try:
                yield
            finally:
                self.console.log_to(None)
                quiet_libraries()

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time the block as a stage of the run."""
        return self._clock.stage(name)

    def warn_once(self, message: str) -> None:
        """Print a warning, the same one once only."""
        if message not in self._warned:
            self._warned.add(message)
            self.console.warn(message)

    def begin(self, description: Mapping[str, Any], checkpoint: Path | None) -> None:
        """Write what the run is made of before it trains, so that a killed run can be understood and resumed.

        A resumed run keeps its record; its metrics are cut back to the checkpoint's step.
        """
        if not self.first:
            return
        self._metrics.cut_back(step_of(checkpoint) if checkpoint else -1)
        if self.directory.record.is_file() and self.directory.status is not None:
            self.directory.update_record(status="running")
        else:
            self.directory.update_record(**description)
        if checkpoint:
            self.console.info(f"resuming from {checkpoint.name}")
        self.session.run_started(self.directory.path)

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl and pass it to the plugins."""
        self._metrics.append(record)
        self.session.log(record)

    def update(self, **changes: Any) -> None:
        """Change keys of run.json."""
        if self.first:
            self.directory.update_record(**changes)

    @contextmanager
    def outcome(self) -> Iterator[None]:
        """Write the status "failed" or "interrupted" and the error into run.json if the block raises."""
        try:
            yield
        except BaseException as error:
            interrupted = isinstance(error, (InterruptedRun, KeyboardInterrupt))
            self.finish("interrupted" if interrupted else "failed", error=str(error) or type(error).__name__)
            if isinstance(error, KeyboardInterrupt):
                raise InterruptedRun(
                    "interrupted before a checkpoint could be saved; "
                    f"start again with: align resume {self.directory.path}"
                ) from error
            raise

    def finish(self, status: str, **changes: Any) -> dict[str, Any]:
        """Write how the run ended, tell the plugins, and return the record (empty on other processes than the first)."""
        if not self.first:
            return {}
        seconds = self.directory.read_record().get("seconds", 0.0) + time.time() - self.started
        record = self.directory.update_record(
            status=status, ended=time.time(), seconds=seconds, timings=self.timings(), **changes
        )
        self.session.run_finished(record, self.directory.path)
        return record

    def timings(self) -> dict[str, dict[str, float]]:
        """Return ``{stage: {seconds, cpu_seconds}}``, an interrupted part of the run included."""
        return self._clock.added_to(self.directory.read_record().get("timings", {}))

    def discard(self) -> None:
        """Remove the directory of a run that never began to train."""
        if self.first:
            shutil.rmtree(self.directory.path, ignore_errors=True)
