"""The run directory: its name, its files, its record (run.json) and its lock."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import AbstractContextManager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from alignkit.contract.suites import SuiteResult
from alignkit.errors import CheckpointError, ConfigError
from alignkit.rundir.evaluations import write_evaluation
from alignkit.system.files import write_json
from alignkit.system.lock import directory_lock, lock_holder


class RunDir:
    """The directory of one run. Every file in it but the two logs appears whole or not at all."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "run.yaml"
        self.record = self.path / "run.json"
        self.metrics = self.path / "metrics.jsonl"
        self.model = self.path / "model"
        self.log = self.path / "train.log"
        self.checkpoints = self.path / "checkpoints"
        self.evaluation = self.path / "eval"
        self.samples = self.path / "samples.jsonl"
        self.plots = self.path / "plots"
        self.report = self.path / "report.html"

    # ------------------------------------------------------------------ finding and making

    @classmethod
    def create(
        cls, parent: Path | str, name: str | None = None, *, method: str = "run", repeat: bool = False
    ) -> RunDir:
        """Make the directory of a new run under ``parent``.

        A given name may be taken by an attempt that ended without a checkpoint, whose files are removed. Without a name
        one is made from the method and the time.

        Args:
            parent: made where it is missing.
            name: name of the directory, relative to ``parent``.
            method: the method's name, for a name of our own.
            repeat: the run repeats an earlier one: where the name is taken, use the next free ``NAME-2``, ``NAME-3``, ...

        Raises:
            ConfigError: the name leaves ``parent`` or is taken, or the directory cannot be made.
        """
        parent = Path(parent)
        wanted = child_of(parent, default_run_name(method) if name is None else name)
        if repeat or name is None:
            return cls(_make(wanted, numbered=True))
        run = cls(wanted)
        try:
            run._refuse_taken()
        except PermissionError as error:
            raise ConfigError(f"cannot look into {parent}: {error.strerror}") from error
        _make(wanted, numbered=False)
        run._clear()
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """Return an existing run's directory; raises ``ConfigError`` where ``path`` is none."""
        run = cls(path)
        if not run.record.is_file():
            raise ConfigError(f"{path} is not a run directory: it holds no run.json")
        return run

    @classmethod
    def newest_finished(cls, parent: Path | str) -> RunDir | None:
        """Return the run under ``parent`` that finished last, None without one."""
        records = [path for path in Path(parent).glob("*/run.json") if cls(path.parent).status == "finished"]
        return cls(max(records, key=lambda path: path.stat().st_mtime).parent) if records else None

    # ------------------------------------------------------------------ the record

    def read_record(self) -> dict[str, Any]:
        """Return run.json, an empty one where there is none yet; raises ``CheckpointError`` where it cannot be read."""
        if not self.record.exists():
            return {}
        try:
            record = json.loads(self.record.read_bytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.record}: not readable: {error}") from error
        if not isinstance(record, dict):
            raise CheckpointError(f"{self.record}: expected a JSON object")
        return record

    def update_record(self, **changes: Any) -> dict[str, Any]:
        """Replace keys of run.json (``status="finished"``, ``steps=150``, ...) and return all of it."""
        record = self.read_record() | changes
        write_json(self.record, record)
        return record

    @property
    def status(self) -> str | None:
        """``running``, ``finished``, ``failed`` or ``interrupted``; None before there is a record."""
        status = self.read_record().get("status")
        return None if status is None else str(status)

    def write_evaluation(self, result: SuiteResult, *, target: str) -> Path:
        """Write the trained model's result of a suite into ``eval/`` (see :func:`write_evaluation`)."""
        return write_evaluation(self.evaluation, result, target=target)

    # ------------------------------------------------------------------ the lock

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from training here; raises ``ConfigError`` where one does."""
        return directory_lock(self._lock_file)

    def locked_by(self) -> int | None:
        """Return the process that trains here, None where there is none: a record left ``running`` is then of a dead one."""
        return lock_holder(self._lock_file)

    @property
    def _lock_file(self) -> Path:
        return self.path / ".lock"

    # ------------------------------------------------------------------ taking over a name

    def _refuse_taken(self) -> None:
        """Raise ``ConfigError`` where the directory holds anything worth keeping."""
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not self.record.is_file() and not self.config.is_file():
            raise ConfigError(f"{self.path} exists and is not a run directory: choose another name with --name")
        holder = self.locked_by()
        if holder is not None:
            raise ConfigError(
                f"{self.path} is in use by process {holder or 'unknown'}: choose another name with --name"
            )
        if self.status == "finished":
            raise ConfigError(f"{self.path} holds a finished run: choose another name with --name")
        if any(self.checkpoints.glob("checkpoint-*")):
            raise ConfigError(
                f"{self.path} holds an unfinished run: continue it with `align resume {self.path}`, "
                "or choose another name with --name"
            )

    def _clear(self) -> None:
        """Remove what an earlier attempt without a checkpoint left, and nothing else."""
        for path in (self.config, self.record, self.metrics, self.log, self.samples, self.report):
            path.unlink(missing_ok=True)
        for path in (self.model, self.checkpoints, self.evaluation, self.plots):
            if path.is_dir():
                shutil.rmtree(path)


def default_run_name(method: str) -> str:
    """Return a name made from the method and the time."""
    return f"{method.replace(':', '-')}-{datetime.now():%Y%m%d-%H%M%S}"


def child_of(parent: Path, name: str) -> Path:
    """Return ``parent / name``; raises ``ConfigError`` for a name that is empty or leads out of ``parent``."""
    if not name.strip() or "\0" in name:
        raise ConfigError(f"{name!r} cannot name a run directory")
    child = parent / name
    root, resolved = parent.resolve(), child.resolve()
    if resolved == root or not resolved.is_relative_to(root):
        raise ConfigError(f"the run's name {name!r} leads out of {parent}: give the parent directory with --output")
    return child


def _make(wanted: Path, *, numbered: bool) -> Path:
    """Make ``wanted``, or with ``numbered`` the first of ``wanted``, ``wanted-2``, ... that nobody else has made."""
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        if numbered:
            return _make_free(wanted)
        wanted.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"cannot make the run directory {wanted}: {error.filename} is a file") from error
    except OSError as error:
        raise ConfigError(f"cannot make the run directory {wanted}: {error.strerror}") from error
    if not os.access(wanted, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write into the run directory {wanted}: permission denied")
    return wanted


def _make_free(wanted: Path) -> Path:
    for number in count(1):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable: the numbers are endless")
