"""The files of a sweep: its definition (sweep.yaml), and its cells with their status (sweep.json)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from alignkit import Outcome, settings
from alignkit.errors import ConfigError
from alignkit.rundir.directory import RunDir
from alignkit.system.files import write_json, write_text
from alignkit.system.manifest import sealed
from alignkit.system.terminal import redact
from pydantic import TypeAdapter, ValidationError

from alignkit_eval.comparison.looks import Race
from alignkit_eval.records import read_records, read_value
from alignkit_eval.sweeps.grid import SweepCell, SweepSpec


@dataclass
class CellRecord:
    """The record of one cell; ``status`` is pending, running, finished, failed or interrupted; in a race paused or stopped."""

    name: str
    settings: Mapping[str, Any]
    seed: int
    status: str
    run: str
    seconds: float | None = None
    cpu_seconds: float | None = None
    error: str | None = None
    timings: Mapping[str, Any] | None = None
    host: str | None = None
    """Machine on which it ended."""


class Manifest:
    """The state of a sweep, written to disk atomically at every change."""

    def __init__(self, directory: Path, cells: Sequence[SweepCell], notes: list[str], *, racing: bool = False) -> None:
        self.directory, self.notes = directory, notes
        self.comparison: Any = None
        self.race: Race | None = read_value(directory / "sweep.json", "race", Race | None) if racing else None
        before = {cell.name: cell for cell in read_records(directory / "sweep.json", "cells", CellRecord)}
        self.entries = {cell.name: _cell_record(cell, before.get(cell.name)) for cell in cells}

    def started(self, name: str) -> None:
        self.entries[name].status = "running"
        self.write()

    def ended(self, outcome: Outcome) -> None:
        entry = self.entries[outcome.name]
        record = RunDir(Path(entry.run)).read_record()
        paused = outcome.status == "finished" and record.get("status") == "paused"
        entry.status = "paused" if paused else "pending" if outcome.status == "waiting" else outcome.status
        entry.error, entry.host = outcome.error, outcome.host or None
        entry.seconds = (entry.seconds or 0.0) + outcome.seconds
        entry.cpu_seconds = (entry.cpu_seconds or 0.0) + outcome.cpu_seconds
        entry.timings = record.get("timings")
        self.write()

    def settle(self, left: Collection[str]) -> None:
        """Mark the cells of arms that left a race and were not trained to their end."""
        for name in left:
            if self.entries[name].status == "paused":
                self.entries[name].status = "stopped"
        self.write()

    def write(self) -> None:
        cells = [asdict(entry) for entry in self.entries.values()]
        stored = {"cells": cells, "comparison": self.comparison, "notes": self.notes, "race": None}
        if self.race is not None:
            tokens, share, cpu = self.race.saved()
            saved = {"tokens": tokens, "share_of_tokens": share, "cpu_seconds": cpu}
            stored |= {"race": asdict(self.race) | {"saved": saved}}
        write_json(self.directory / "sweep.json", sealed(stored))


def _cell_record(cell: SweepCell, before: CellRecord | None) -> CellRecord:
    """Return a cell with its status from its run directory, and its durations from an earlier manifest."""
    record = RunDir(cell.directory).read_record()
    status = record.get("status") or "pending"
    return CellRecord(
        cell.name,
        dict(cell.settings),
        cell.seed,
        status,
        str(cell.directory),
        before.seconds if before else None,
        before.cpu_seconds if before else None,
        before.error if before and status == "failed" else None,
        record.get("timings"),
        before.host if before else None,
    )


def write_spec(directory: Path, spec: SweepSpec) -> None:
    """Write sweep.yaml, or if it exists check that it is equal; raises ``ConfigError`` naming the key that differs."""
    path = directory / "sweep.yaml"
    if not path.is_file():
        write_text(path, settings.write(asdict(spec)))
        return
    before, now = asdict(read_spec(directory)), asdict(spec)
    for name, value in now.items():
        if json.dumps(before[name]) != redact(json.dumps(value)):
            raise ConfigError(
                f"{directory} has a sweep with a different {name} ({before[name]}, now {value}): choose another --name"
            )


def read_spec(directory: Path) -> SweepSpec:
    """Return the definition of the sweep in ``directory``; raises ``ConfigError`` if there is no sweep."""
    path = directory / "sweep.yaml"
    if not path.is_file():
        raise ConfigError(f"{directory} is not a sweep directory: it has no sweep.yaml")
    values = settings.read(path).values
    try:
        found = {"race": None} | values
        found = {field.name: found[field.name] for field in fields(SweepSpec)}
        return TypeAdapter(SweepSpec).validate_python(found)
    except KeyError as error:
        raise ConfigError(f"{path} lacks the key {error.args[0]}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {key}: {first['msg'][0].lower()}{first['msg'][1:]}") from error
