"""Records of a run while it trains: its log, run.json, metrics.jsonl and the plugins' broadcast hooks."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from alignkit.contract.registry import provided
from alignkit.display.console import Console
from alignkit.errors import AlignError, CheckpointError, InterruptedRun, RunFailedError, described, memory_fault
from alignkit.rundir.directory import RunDir
from alignkit.rundir.metrics import MetricsLog
from alignkit.rundir.record import ProcessesRecord, RunRecord
from alignkit.system.distributed import rank
from alignkit.system.files import file_fault, remove_leftovers, write_json
from alignkit.system.manifest import sealed
from alignkit.system.quiet import quieted
from alignkit.system.signals import terminable
from alignkit.system.stopwatch import Stopwatch
from alignkit.system.terminal import printable
from alignkit.system.worker import last_word, lost_connection, tell
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
        self._record: dict[str, Any] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the directory's lock, and send every library's log lines to its train.log.

        What killed processes left is removed; SIGTERM and SIGHUP raise in the block, as Ctrl-C does.
        """
        tell("run", str(self.directory.path.absolute()))
        if not self.first:
            yield
            return
        with self.directory.lock(), terminable():
            remove_leftovers(self.directory.path)
            self._is = self.directory.path.stat()
            self.console.log_to(self.directory.log)
            handler = logging.FileHandler(self.directory.log, delay=True)
            handler.format = lambda record: printable(_LOG_FORMAT.format(record))  # type: ignore[method-assign]
            try:
                with quieted(handler):
                    yield
            finally:
                self.console.log_to(None)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time the block as a stage of the run."""
        return self._clock.stage(name)

    def warn_once(self, message: str) -> None:
        """Print a warning, the same one once only."""
        if message not in self._warned:
            self._warned.add(message)
            self.console.warn(message)

    def begin(
        self, description: Mapping[str, Any], checkpoint: Path | None, changes: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Write what the run is made of before it trains, so that a killed run can be understood and resumed.

        A resumed run keeps its record, with the settings that hold now and the ``changes`` that led to them; its metrics
        are cut back to the checkpoint's step.
        """
        if not self.first:
            return
        self._metrics.cut_back(step_of(checkpoint) if checkpoint else -1)
        self._record = dict(description)
        settings = {key: description[key] for key in ("config", "conventions", "seed", "processes")}
        made = [*self._stored().get("changes", []), *changes]
        self.update(**{"status": "running", "changes": made, **settings} if self.directory.status else description)
        if (processes := ProcessesRecord.model_validate(description["processes"])).world_size > 1:
            self.console.info(str(processes))
        if checkpoint:
            self.console.info(f"resuming from {checkpoint.name}")
        for change in changes:
            self.console.info("after step {step}: {key} changed from {from} to {to}".format_map(change))
        self.session.run_started(self.directory.path)

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl and pass it to the plugins."""
        self.require_directory()
        self._metrics.append(record)
        self.session.log(record)

    def require_directory(self) -> None:
        """Raise :class:`RunFailedError` if the run directory was removed or replaced since the run opened it."""
        try:
            there = not self.first or os.path.samestat(self.directory.path.stat(), self._is)
        except OSError:
            there = False
        if not there:
            raise RunFailedError(
                f"{self.directory.path} was removed while the run was using it, with its checkpoints: start the run again"
            )

    def update(self, **changes: Any) -> dict[str, Any]:
        """Change keys of run.json, made anew if it was removed, and return it (empty on other processes than the first)."""
        if not self.first:
            return {}
        self.require_directory()
        self._record |= self._stored() | changes
        write_json(self.directory.record, sealed(self._record))
        return self._record

    def _stored(self) -> dict[str, Any]:
        """Return run.json as it is on disk, where other commands write as well; as it was written, if it is damaged."""
        try:
            return self.directory.read_record()
        except CheckpointError:
            return self._record

    @contextmanager
    def outcome(self) -> Iterator[None]:
        """Write the status "failed" or "interrupted" and the error into run.json if the block raises.

        Ctrl-C and signals are raised on as :class:`InterruptedRun`, a disk or directory that cannot be written as
        :class:`RunFailedError`; both say what is safe and how to resume.
        """
        try:
            yield
        except BaseException as raised:
            error = self._explained(raised)
            status = "interrupted" if isinstance(error, InterruptedRun) else "failed"
            why = str(error) if isinstance(error, AlignError) else described(error)
            if lost_connection(raised) and (stored := self._stored()).get("status") == "failed":
                why = stored["error"]  # another machine's launcher knows why
            with suppress(OSError, RunFailedError):
                if self.first:
                    remove_leftovers(self.directory.path)  # on a full disk, this makes room for the record
                elif status == "failed" and not lost_connection(raised):
                    last_word(f"rank {rank()} failed: {why}")
                try:
                    record = self.finish(status, error=why)
                except OSError:
                    self.directory.overwrite_status(status)
                else:
                    try:
                        self.finished(record)
                    except AlignError as failure:  # of a plugin, which must not hide the first error
                        error.add_note(str(failure))
            if error is not raised:
                raise error from raised
            raise

    def _explained(self, error: BaseException) -> BaseException:
        """Return an error that says how to resume in place of a signal or an error of the file system."""
        path = self.directory.path
        try:
            self.require_directory()
        except RunFailedError as removed:
            return removed
        if isinstance(error, KeyboardInterrupt):
            how = f"interrupted before a checkpoint could be saved; start again with: align resume {shlex.quote(str(path))}"
            return InterruptedRun(how, getattr(error, "number", signal.SIGINT))
        if isinstance(error, SystemExit | GeneratorExit):  # the exit code is that of a failed run
            return RunFailedError(f"the run was ended by code that it called: {described(error)}")
        if fault := memory_fault(error):
            return RunFailedError(fault)
        if lost_connection(error):
            return RunFailedError(f"{last_word()}; resume with: align resume {shlex.quote(str(path))}")
        if (cause := file_fault(error, path)) is None:
            return error
        saved = max(map(step_of, self.directory.checkpoints.glob("checkpoint-*")), default=-1)
        safe = f"the checkpoint of step {saved} is whole" if saved >= 0 else "no checkpoint was saved yet"
        failed = RunFailedError(f"{cause}; {safe}: mend this, then resume with: align resume {shlex.quote(str(path))}")
        failed.__notes__ = [*getattr(error, "__notes__", [])]
        return failed

    def finish(self, status: str, **changes: Any) -> dict[str, Any]:
        """Write how the run ended and return the record (empty on other processes than the first)."""
        seconds = self._stored().get("seconds", 0.0) + time.time() - self.started
        return self.update(status=status, ended=time.time(), seconds=seconds, timings=self.timings(), **changes)

    def write_documents(self, record: Mapping[str, Any]) -> None:
        """Write the model card and the plots; what fails is a warning, because the run has its results already."""
        directory = self.directory
        try:
            if (card := provided("align.reports", "card")) is not None:
                card(directory.model, RunRecord.parse(record, directory.record))
            if record["config"]["run"]["plots"] and (draw := provided("align.reports", "plots")) is not None:
                draw(directory.path)
        except AlignError as error:
            self.console.warn(f"no card or plots were written: {error}")

    def finished(self, record: Mapping[str, Any]) -> None:
        """Tell the plugins that the run ended; one that fails is named in run.json, and the run's status stays."""
        try:
            if self.first:
                self.session.run_finished(dict(record), self.directory.path)
        except AlignError as error:
            self.update(error="; ".join(filter(None, [record.get("error"), str(error)])))
            raise

    def timings(self) -> dict[str, dict[str, float]]:
        """Return ``{stage: {seconds, cpu_seconds}}``, an interrupted part of the run included."""
        return self._clock.added_to(self._stored().get("timings", {}))

    def discard(self) -> None:
        """Remove the directory of a run that never began to train."""
        if self.first:
            self.directory.discard()
