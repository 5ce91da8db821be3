"""sweep.json and sweep.yaml: which cells a sweep has, how each stands, and what was asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from alignkit import settings
from alignkit.errors import CheckpointError, ConfigError
from alignkit.rundir.directory import RunDir
from alignkit.system.files import write_json, write_text

from alignkit_eval.sweeps.grid import SweepCell, SweepSpec
from alignkit_eval.sweeps.scheduler import Outcome


@dataclass
class CellRecord:
    """One cell in the manifest. ``status``: pending, running, finished, failed or interrupted."""

    name: str
    settings: Mapping[str, Any]
    seed: int
    status: str
    run: str
    seconds: float | None = None
    cpu_seconds: float | None = None
    error: str | None = None
    timings: Mapping[str, Any] | None = None


class Manifest:
    """The state of a sweep on disk; every change is written at once, whole or not at all."""

    def __init__(self, directory: Path, entries: Sequence[CellRecord]) -> None:
        self.directory = directory
        self.entries = {entry.name: entry for entry in entries}
        self.comparison: Any = None
        self.notes: list[str] = []

    @classmethod
    def open(cls, directory: Path, cells: Sequence[SweepCell]) -> Manifest:
        """Return the manifest of these cells: how each stands is what its run directory says."""
        before = _stored(directory)
        entries = []
        for cell in cells:
            run = RunDir(directory / cell.name)
            status = run.status or "pending"
            entry = CellRecord(cell.name, dict(cell.settings), cell.seed, status, str(run.path))
            known = before.get(cell.name, {})
            entry.seconds, entry.cpu_seconds = known.get("seconds"), known.get("cpu_seconds")
            entry.error = known.get("error") if status == "failed" else None
            entry.timings = run.read_record().get("timings")
            entries.append(entry)
        return cls(directory, entries)

    def started(self, name: str) -> None:
        """Mark a cell as running."""
        self.entries[name].status = "running"
        self.write()

    def ended(self, outcome: Outcome) -> None:
        """Write down how a cell ended."""
        entry = self.entries[outcome.name]
        entry.status, entry.error = outcome.status, outcome.error
        entry.seconds = (entry.seconds or 0.0) + outcome.seconds
        entry.cpu_seconds = (entry.cpu_seconds or 0.0) + outcome.cpu_seconds
        entry.timings = RunDir(Path(entry.run)).read_record().get("timings")
        self.write()

    def with_status(self, status: str) -> list[CellRecord]:
        """Return the cells that stand like this."""
        return [entry for entry in self.entries.values() if entry.status == status]

    def write(self) -> None:
        """Write sweep.json."""
        cells = [asdict(entry) for entry in self.entries.values()]
        write_json(self.directory / "sweep.json", {"cells": cells, "comparison": self.comparison, "notes": self.notes})


def write_asked(directory: Path, asked: SweepSpec) -> None:
    """Write sweep.yaml, or check that what stands there is the same; raises ``ConfigError`` naming what differs."""
    path = directory / "sweep.yaml"
    if not path.is_file():
        write_text(path, settings.write(asdict(asked)))
        return
    before, now = asdict(read_asked(directory)), asdict(asked)
    for name, value in now.items():
        if json.dumps(before[name]) != json.dumps(value):
            raise ConfigError(
                f"{directory} holds a sweep with another {name} ({before[name]}, now {value}): choose another --name"
            )


def read_asked(directory: Path) -> SweepSpec:
    """Return what the sweep in ``directory`` was asked to do; raises ``ConfigError`` where there is none."""
    path = directory / "sweep.yaml"
    if not path.is_file():
        raise ConfigError(f"{directory} holds no sweep: it has no sweep.yaml")
    values = settings.read(path).values
    try:
        return SweepSpec(**{field.name: values[field.name] for field in fields(SweepSpec)})
    except KeyError as error:
        raise ConfigError(f"{path} lacks the key {error.args[0]}") from error


def _stored(directory: Path) -> dict[str, dict[str, Any]]:
    path = directory / "sweep.json"
    if not path.is_file():
        return {}
    try:
        return {cell["name"]: cell for cell in json.loads(path.read_bytes())["cells"]}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
