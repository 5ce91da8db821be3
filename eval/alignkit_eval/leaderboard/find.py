"""The runs below a directory, those that a filter leaves, and why the others are not ranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.errors import AlignError, ConfigError, suggest
from alignkit.rundir.directory import RunDir
from alignkit.settings.layers import SECTIONS
from alignkit.settings.yaml_files import parse_value
from alignkit.system.files import digest, to_json

from alignkit_eval.comparison.arms import RunResult, read_run
from alignkit_eval.comparison.folds import join_folds

SKIPPED = {"model", "checkpoints", "eval", "plots"}
"""Directories of a run that hold no other run."""


@dataclass(frozen=True)
class Apart:
    """A run that is not ranked, and why."""

    path: Path
    reason: str


def runs_below(directory: Path) -> tuple[list[RunResult], list[Apart]]:
    """Return the finished and evaluated runs below a directory, and the others with the reason.

    Raises:
        ConfigError: the directory does not exist, or no run is below it.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory} is not a directory")
    found: list[RunResult] = []
    apart: list[Apart] = []
    for path in _places(directory):
        try:
            found.append(read_run(path))
        except AlignError as error:
            apart.append(Apart(path, str(error).removeprefix(f"{path} ")))
    if not found and not apart:
        raise ConfigError(f"there is no run below {directory}")
    found = _newest(found, apart)
    try:
        return join_folds(found), apart
    except ConfigError as error:  # a fold is missing
        apart += [Apart(run.path, str(error)) for run in found if run.settings.get("data.folds")]
        return [run for run in found if not run.settings.get("data.folds")], apart


def _places(directory: Path) -> list[Path]:
    """Return the directories of runs and of evaluations, in order."""
    found, waiting = [], [directory]
    while waiting:
        place = waiting.pop()
        own = (place / "run.json").is_file() or any((place / "eval").glob("*.json"))
        found += [place] if own else []
        waiting += [
            child
            for child in sorted(place.iterdir(), reverse=True)
            if child.is_dir()
            and not child.is_symlink()
            and not (own and child.name in SKIPPED)
            and child.name[0] != "."
        ]
    return found


def _newest(runs: Sequence[RunResult], apart: list[Apart]) -> list[RunResult]:
    """Return the runs without older ones of the same configuration, seed and start model."""
    kept: dict[str, RunResult] = {}
    for run in sorted(runs, key=_started):
        about = run.path if run.method is None else (run.label, run.settings, run.seed, run.start)
        key = digest(to_json([str(about)]))
        if (older := kept.pop(key, None)) is not None:
            apart.append(Apart(older.path, f"has the configuration and seed of {run.path}, which is newer"))
        kept[key] = run
    return sorted(kept.values(), key=lambda run: str(run.path))


def _started(run: RunResult) -> float:
    return float(RunDir(run.path).read_record().get("started", 0.0))


class Filter:
    """``KEY=VALUE,...``: a setting (a bare key is one of the method's), ``method`` or ``seed``, and the values to keep."""

    def __init__(self, text: str) -> None:
        self.key, equals, values = text.partition("=")
        if not equals or not self.key or not values:
            raise ConfigError(f"--where {text}: write KEY=VALUE, e.g. method=dpo or train.learning_rate=1e-4,3e-4")
        self.values = [parse_value(value.strip()) for value in values.split(",")]

    def keeps(self, run: RunResult) -> bool:
        """Whether a run has one of the values."""
        known = settings_of(run)
        return self.key in known and any(
            known[self.key] == value or str(known[self.key]) == str(value) for value in self.values
        )

    def require(self, runs: Sequence[RunResult]) -> None:
        """Raise ``ConfigError`` if no run has the key."""
        known = {key for run in runs for key in settings_of(run)}
        if self.key not in known:
            raise ConfigError(f"--where {self.key}: no run has this key{suggest(self.key, sorted(known))}")


def settings_of(run: RunResult) -> Mapping[str, Any]:
    """Return the settings of a run as filters name them."""
    found = {key.removeprefix("method."): value for key, value in run.settings.items()}
    known = {key: value for key, value in found.items() if "." in key or key not in SECTIONS}
    return known if run.method is None else {**known, "method": run.label, "seed": run.seed}
