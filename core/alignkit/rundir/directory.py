"""The run directory: its name, files, record (run.json) and lock."""

from __future__ import annotations

import os
import shlex
import shutil
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from alignkit.errors import CheckpointError, ConfigError, first_line
from alignkit.rundir.record import RunRecord
from alignkit.system.files import is_leftover, parse_json, read_regular, remove_leftovers, to_json, write_json
from alignkit.system.lock import directory_lock, lock_holder
from alignkit.system.manifest import sealed, unsealed


class RunDir:
    """Directory of one run. Every file except the two logs is written atomically."""

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
        self._lock_file = self.path / ".lock"

    @classmethod
    def create(
        cls, parent: Path | str, name: str | None = None, *, method: str = "run", repeat: bool = False
    ) -> RunDir:
        """Create the directory of a new run under ``parent``.

        The files of an earlier attempt of the same name that ended without a checkpoint are removed.

        Args:
            parent: parent directory, created if missing.
            name: name of the directory, relative to ``parent`` (default: made from the method and the time).
            method: name of the method, for the default name.
            repeat: if the name is taken, use the first free one of ``NAME-2``, ``NAME-3``, ...

        Raises:
            ConfigError: the name points outside ``parent`` or is taken, or the directory cannot be created.
        """
        parent = Path(parent)
        wanted = child_of(parent, default_run_name(method) if name is None else name)
        if repeat or name is None:
            return cls(_make(wanted, numbered=True))
        run = cls(wanted)
        try:
            run._refuse_taken()
        except PermissionError as error:
            raise ConfigError(f"cannot read {parent}: {error.strerror}") from error
        _make(wanted, numbered=False)
        run._clear()
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """Return the directory of a run, which may not have a record yet; raises ``ConfigError`` if ``path`` is not one."""
        run = cls(path)
        try:
            found = run.record.is_file() or run.config.is_file() or run.locked_by() is not None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        if not found:
            raise ConfigError(f"{path} is not a run directory: it holds no run.json")
        return run

    def read_record(self) -> dict[str, Any]:
        """Return run.json, an empty dictionary if it does not exist; raises ``CheckpointError`` if it cannot be read."""
        if not self.record.exists():
            return {}
        try:
            found = to_json(parse_json(read_regular(self.record)))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.record}: not readable: {first_line(error)}") from error
        if not isinstance(found, dict):
            raise CheckpointError(f"{self.record}: expected a JSON object")
        record: dict[str, Any] = unsealed(found, self.record)
        RunRecord.check(record, self.record)
        return record

    def overwrite_status(self, status: str) -> None:
        """Write a status over ``running`` in place, which needs no space on a full disk; of the same length at most."""
        text = self.record.read_bytes()
        old, new = b'"status": "running"', f'"status": "{status}"'.encode()
        if (at := text.find(old)) >= 0 and len(new) <= len(old):
            with self.record.open("r+b") as file:
                file.seek(at)
                file.write(new.ljust(len(old)))

    def update_record(self, **changes: Any) -> dict[str, Any]:
        """Update keys of run.json (``status="finished"``, ``steps=150``, ...) and return the whole record."""
        record = self.read_record() | changes
        write_json(self.record, sealed(record))
        return record

    @property
    def status(self) -> str | None:
        """``running``, ``finished``, ``failed`` or ``interrupted``; None if there is no record."""
        status = self.read_record().get("status")
        return None if status is None else str(status)

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from training here; raises ``ConfigError`` if one does."""
        return directory_lock(self._lock_file)

    def locked_by(self) -> int | None:
        """Return the id of the process that trains here; None if there is none (a ``running`` record is then of a dead process)."""
        return lock_holder(self._lock_file)

    def _refuse_taken(self) -> None:
        """Raise ``ConfigError`` if the directory is in use or holds anything worth keeping."""
        if not self.path.is_dir():
            return
        another = "choose another name with --name"
        if (holder := self.locked_by()) is not None:
            raise ConfigError(f"{self.path} is in use by process {holder or 'unknown'}: {another}")
        if all(is_leftover(path) or path == self.log for path in self.path.iterdir()):
            return
        if not self.record.is_file() and not self.config.is_file():
            raise ConfigError(f"{self.path} exists and is not a run directory: {another}")
        if self.status == "finished":
            raise ConfigError(f"{self.path} holds a finished run: {another}")
        if any(self.checkpoints.glob("checkpoint-*")):
            resume = f"continue it with `align resume {shlex.quote(str(self.path))}`"
            raise ConfigError(f"{self.path} holds an unfinished run: {resume}, or {another}")

    def discard(self) -> None:
        """Remove the directory of a run that never began to train; files of others stay."""
        self._clear()
        self._lock_file.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    def _clear(self) -> None:
        """Remove the files of an earlier attempt without a checkpoint, and nothing else."""
        remove_leftovers(self.path)
        for path in (self.model, self.checkpoints, self.evaluation, self.plots):
            if path.is_dir():
                shutil.rmtree(path)
        # run.yaml last: a directory without it is not taken for a run's when this is cut short.
        for path in (self.record, self.metrics, self.log, self.samples, self.report, self.config):
            path.unlink(missing_ok=True)


def default_run_name(method: str) -> str:
    """Return a name made from the method and the time."""
    return f"{method.replace(':', '-')}-{datetime.now():%Y%m%d-%H%M%S}"


def child_of(parent: Path, name: str) -> Path:
    """Return ``parent / name``; raises ``ConfigError`` for a name that is empty or points outside ``parent``."""
    if not name.strip() or "\0" in name or max(map(len, name.encode().split(b"/"))) > 255:
        raise ConfigError(f"{name!r} is not a valid name of a run directory")
    child = parent / name
    root, resolved = parent.resolve(), child.resolve()
    if resolved == root or not resolved.is_relative_to(root):
        raise ConfigError(f"the run name {name!r} points outside {parent}: set the parent directory with --output")
    return child


def _make(wanted: Path, *, numbered: bool) -> Path:
    """Create ``wanted``, or with ``numbered`` the first of ``wanted``, ``wanted-2``, ... that does not exist."""
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        if numbered:
            return _make_free(wanted)
        wanted.mkdir(exist_ok=True)
    except OSError as error:
        reason = f"{error.filename} is a file" if isinstance(error, FileExistsError) else error.strerror
        raise ConfigError(f"cannot create the run directory {wanted}: {reason}") from error
    if not os.access(wanted, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write to the run directory {wanted}: permission denied")
    return wanted


def _make_free(wanted: Path) -> Path:
    for number in count(1):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("unreachable")
