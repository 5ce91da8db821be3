"""A service that records a run in a tracker: what is recorded, and when; subclasses say how."""

from __future__ import annotations

import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from alignkit import RunConfig, hookimpl
from alignkit.display.console import Console
from alignkit.errors import ConfigError, RunFailedError, described
from alignkit.rundir.directory import RunDir
from alignkit.rundir.metrics import MetricsLog
from alignkit.system.files import write_json

from alignkit_trackers.content import after_values, before_values, group_of, plots_of, read_json, tables_of

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Tracked:
    """The run as a tracker knows it."""

    name: str
    project: str
    group: str | None
    """The sweep or pipeline that the run belongs to."""
    directory: Path
    id: str | None
    """What :meth:`Tracker.start` returned when the run began; None for a new run."""
    step: int
    """The last recorded step that holds: a resumed run records later ones again."""


class Tracker(ABC):
    """Records one run: its configuration, every line of metrics.jsonl, evaluations, tables, plots, card and model.

    The id of the tracked run is kept in ``trackers.json`` of the run directory, so that a resumed run continues it. An error
    after the start does not stop the training: it is a warning, nothing more is sent, and the command fails at the end.
    """

    name: ClassVar[str]
    packages: ClassVar[Mapping[str, str]]
    """What must be installed: name of the import -> name for pip."""
    project_variable: ClassVar[str | None] = None
    """The tracker's own environment variable for the project."""
    keeps_models: ClassVar[bool] = True
    """Whether a model can be logged as an artifact."""

    def __init__(self) -> None:
        if missing := [pip for module, pip in self.packages.items() if not _importable(module)]:
            raise ConfigError(f"train.report_to: {self.name} needs a package: pip install {' '.join(missing)}")
        if problem := self.unavailable():
            raise ConfigError(f"train.report_to: {self.name}: {problem}")
        self._run: Tracked | None = None
        self._error: str | None = None
        self._keeps_model = self._before_done = False

    # ------------------------------------------------------------------ what a tracker does

    def unavailable(self) -> str | None:
        """Return why runs cannot be recorded and what to do about it, as far as it shows without a connection."""
        return None

    @abstractmethod
    def start(self, run: Tracked) -> str:
        """Begin the tracked run, or continue the one of ``run.id``; return its id."""

    @abstractmethod
    def config(self, values: Mapping[str, Any]) -> None:
        """Record the configuration, section by section."""

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers of an optimizer step."""

    @abstractmethod
    def table(self, name: str, rows: Rows) -> None:
        """Record a table; every row has the same keys."""

    @abstractmethod
    def plot(self, name: str, path: Path) -> None:
        """Record a picture, PNG or SVG."""

    @abstractmethod
    def document(self, name: str, path: Path) -> None:
        """Record a text: the model card in Markdown, the report in HTML, the record in JSON."""

    @abstractmethod
    def model(self, directory: Path) -> None:
        """Record the files of the trained model."""

    @abstractmethod
    def finish(self, status: str) -> None:
        """End the tracked run with the status of the run: finished, failed, interrupted or paused."""

    # ------------------------------------------------------------------ when it does it

    @hookimpl
    def align_run_started(self, config: RunConfig, directory: Path) -> None:
        """Begin or continue the tracked run."""
        record = RunDir(directory).read_record()
        stored = read_json(directory / "trackers.json")
        known = stored.get(self.name, {})
        if known.get("started") != record["started"]:  # of an earlier run in this directory
            known = {}
        run = Tracked(
            name=str(config.run.name or directory.name),
            project=self.project_of(config),
            group=group_of(directory),
            directory=directory.absolute(),
            id=known.get("id"),
            step=last_step(directory),
        )
        try:
            identity = self.start(run)
            self.config({**record["config"], "conventions": record["conventions"]})
        except Exception as error:
            raise ConfigError(f"train.report_to: {self.name} could not start: {described(error)}") from error
        self._run, self._keeps_model = run, config.tracker.model
        self._before_done = bool(known.get("before"))
        self._remember(started=record["started"], id=identity)

    @hookimpl
    def align_log(self, record: dict[str, Any]) -> None:
        """Record a line of metrics.jsonl, after the evaluation of the start model."""
        self._record_before()
        self._try(lambda: self.scalars(numbers_of(record), record["step"]), f"step {record['step']}")

    @hookimpl
    def align_run_finished(self, summary: dict[str, Any], directory: Path) -> None:
        """Record the results of a finished run, and end the tracked run."""
        if self._run is None:
            return
        self._record_before()
        if summary["status"] == "finished":
            self._try(lambda: self._record_results(summary, directory), "the results")
        ended = self._error is None
        self._try(lambda: self.finish(summary["status"] if ended else "failed"), "the end", even_after_error=True)
        self._run = None
        if self._error is not None:
            raise RunFailedError(
                f"{self.name} did not record everything ({self._error}); the run itself is whole: {directory}"
            )

    def record_group(self, run: Tracked, values: Mapping[str, Any], tables: Mapping[str, Rows]) -> str:
        """Record a comparison of runs as a run of its own, or add to it; return its id. Errors are not caught."""
        identity, status = self.start(run), "failed"
        try:
            self.config(values)
            for name, rows in tables.items():
                self.table(name, rows)
            for path in plots_of(run.directory):
                self.plot(path.stem, path)
            if RunDir(run.directory).report.is_file():
                self.document("report", RunDir(run.directory).report)
            status = "finished"
        finally:
            self.finish(status)
        return identity

    def project_of(self, config: RunConfig) -> str:
        """Return the project of a run: the most specific one that is named."""
        of_tracker = os.environ.get(self.project_variable) if self.project_variable else None
        return str(config.run.project or config.train.arguments.get("project") or of_tracker or "alignkit")

    def _remember(self, **values: Any) -> None:
        assert self._run is not None
        path = self._run.directory / "trackers.json"
        stored = read_json(path)
        write_json(path, stored | {self.name: stored.get(self.name, {}) | values})

    def _record_before(self) -> None:
        """Record the evaluation of the start model, once."""
        if self._run is None or self._before_done:
            return
        self._before_done = True
        if values := before_values(RunDir(self._run.directory).read_record()):
            self._try(lambda: self.scalars(values, 0), "the evaluation of the start model")
        self._remember(before=True)

    def _record_results(self, record: Mapping[str, Any], directory: Path) -> None:
        if values := after_values(record):
            self.scalars(values, record["steps"])
        for name, rows in tables_of(directory):
            self.table(name, rows)
        for path in plots_of(directory):
            self.plot(path.stem, path)
        found = {"model_card": RunDir(directory).model / "README.md", "report": RunDir(directory).report}
        for name, path in found.items():
            if path.is_file():
                self.document(name, path)
        if self._keeps_model and self.keeps_models:
            self.model(RunDir(directory).model)

    def _try(self, act: Callable[[], None], what: str, *, even_after_error: bool = False) -> None:
        """Act unless there was an error; the first one is a warning."""
        if self._run is None or (self._error is not None and not even_after_error):
            return
        try:
            act()
        except Exception as error:
            if self._error is None:
                self._error = f"{what}: {described(error)}"
                Console(RunDir(self._run.directory).log).warn(
                    f"{self.name} failed and records nothing more, training goes on: {self._error}"
                )


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of metrics.jsonl, by name."""
    return {name: value for name, value in record.items() if type(value) in (int, float) and name != "step"}


def last_step(directory: Path) -> int:
    """Return the step of the last line of metrics.jsonl; -1 where there is none."""
    return max((record["step"] for record in MetricsLog(directory / "metrics.jsonl").read()), default=-1)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
