"""The files of a sweep: its definition (sweep.yaml), and its cells with their status (sweep.json)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
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
from alignkit_eval.sweeps.earlier import code_of_objective
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
    code: str | None = None
    """Digest of the code of its objective when it began to train; None: unknown."""


class Manifest:
    """The state of a sweep, written to disk atomically at every change."""

    def __init__(self, directory: Path, cells: Sequence[SweepCell], notes: list[str], *, racing: bool = False) -> None:
        """Read what is known of the cells; those without a run have begun nothing, whatever an earlier manifest says."""
        self.directory, self.notes = directory, notes
        self.comparison: Any = None
        self.race: Race | None = read_value(directory / "sweep.json", "race", Race | None) if racing else None
        before = {cell.name: cell for cell in read_records(directory / "sweep.json", "cells", CellRecord)}
        self.cells = {cell.name: cell for cell in cells}
        self.entries = {cell.name: _cell_record(cell, before.get(cell.name)) for cell in cells}

    def started(self, name: str) -> None:
        entry, cell = self.entries[name], self.cells[name]
        if not (cell.directory / "run.json").is_file():
            entry.code = code_of_objective(cell.config)
        entry.status = "running"
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
    before = before if record else None
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
        before.code if before else None,
    )


def codes_in(directory: Path) -> dict[str, str | None]:
    """Return the digests of code of the cells of the sweep in ``directory``."""
    return {cell.name: cell.code for cell in read_records(directory / "sweep.json", "cells", CellRecord)}


def extended(directory: Path, spec: SweepSpec) -> tuple[SweepSpec, list[str]]:
    """Return a sweep with the values and seeds that the one in ``directory`` has as well, those first, and notes for the user.

    Raises:
        ConfigError: another key differs, or what is compared in a race; it is named.
    """
    if not (directory / "sweep.yaml").is_file():
        return spec, []
    before = read_spec(directory)
    open_ended = spec.race is None and before.race is None
    grows = {
        "over": open_ended and before.over.keys() == spec.over.keys(),
        "seeds": open_ended and set(before.seeds) <= set(spec.seeds),
    }
    for name, value in asdict(spec).items():
        had = asdict(before)[name]
        if not grows.get(name) and json.dumps(had) != redact(json.dumps(value)):
            what, earlier, now = _difference(name, had, value)
            raise ConfigError(
                f"{directory} has a sweep with a different {what} ({earlier}, now {now}): choose another --name"
            )
    if not all(grows.values()):
        return spec, []
    joined = {key: _joined(key, values, spec.over[key]) for key, values in before.over.items()}
    over = {key: [*old, *new] for key, (old, new, _) in joined.items()}
    added = [_shown(key, new) for key, (_, new, _) in joined.items() if new]
    kept = [_shown(key, left) for key, (_, _, left) in joined.items() if left]
    seeds = [seed for seed in spec.seeds if seed not in before.seeds]
    added += [_shown("seeds", seeds)] if seeds else []
    notes = [f"{directory} has a sweep already, which is extended: {'; '.join(added)}"] if added else []
    notes += [f"the sweep in {directory} also has {'; '.join(kept)}, which is kept"] if kept else []
    return replace(spec, over=over, seeds=[*before.seeds, *seeds]), notes


def _difference(name: str, had: Any, now: Any) -> tuple[str, Any, Any]:
    """Return what differs between two definitions, of ``--set`` the first such key, with both values."""
    if name == "sets":
        one, other = ({key: value for key, _, value in (text.partition("=") for text in texts)} for texts in (had, now))
        for key in {**one, **other}:
            if one.get(key) != redact(other.get(key, "")) or (key in one) != (key in other):
                return key, one.get(key, "not set"), redact(other.get(key, "not set"))
    return name, had, now


def _joined(key: str, before: Sequence[str], now: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the values of a sweep as they are written now, those that are new, and those that are only in the sweep."""
    named = {_identity(key, value): value for value in now}
    known = {_identity(key, value): value for value in before}
    new = [value for same, value in named.items() if same not in known]
    return [named.get(*one) for one in known.items()], new, [v for same, v in known.items() if same not in named]


def _identity(key: str, value: str) -> str:
    return str(Path(value).resolve()) if key == "config" else redact(value)


def _shown(key: str, values: Sequence[object]) -> str:
    return f"{key} {', '.join(Path(str(v)).stem if key == 'config' else redact(str(v)) for v in values)}"


def write_spec(directory: Path, spec: SweepSpec) -> None:
    """Write sweep.yaml; raises ``ConfigError`` if another process has changed it since ``spec`` was extended."""
    if json.dumps(asdict(extended(directory, spec)[0])) != json.dumps(asdict(spec)):
        raise ConfigError(f"{directory}: the sweep was extended meanwhile: run the same command again")
    write_text(directory / "sweep.yaml", settings.write(asdict(spec)))


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
