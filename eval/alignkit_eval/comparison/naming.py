"""Names of arms: the methods they were trained with, and the settings that distinguish them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Protocol

from alignkit import RunConfig, settings
from alignkit.errors import AlignError
from pydantic import ValidationError

START = "start"
"""Name of the start model that runs share."""


class Named(Protocol):
    """What the name of a run's arm depends on."""

    @property
    def path(self) -> Path: ...
    @property
    def method(self) -> str | None: ...
    @property
    def label(self) -> str | None: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def config(self) -> Mapping[str, Any]: ...


def names_of(runs: Sequence[Named]) -> list[str]:
    """Return the name of each arm, by one run of each, without settings that nobody chose."""
    unasked = {run.label: set[str]() for run in runs if run.label is not None}
    for label in unasked:
        of_label = [run for run in runs if run.label == label]
        unasked[label] = _defaults(of_label, {key for run in of_label for key in distinguishing(run, of_label)})
    return [_name(run, runs, unasked[run.label] if run.label else set()) for run in runs]


def distinguishing(run: Named, others: Sequence[Named]) -> dict[str, Any]:
    """Return the settings in which a run differs from any other; the method's own are compared within that method."""

    def rival(other: Named, key: str) -> bool:
        if key.startswith("method."):
            return other.method == run.method
        return other.label == run.label if key.startswith("start.") else other.method is not None

    def differs(key: str) -> bool:
        return any(other.settings.get(key) != run.settings[key] for other in others if rival(other, key))

    return {key: value for key, value in run.settings.items() if differs(key)}


def _defaults(runs: Sequence[Named], keys: Set[str]) -> set[str]:
    """Return those of ``keys`` that follow from the others in every run, as the ``ratio`` of a loss does from ``loss``."""
    own = [{key for key in keys if key in run.settings and key.partition(".")[2] in _method(run)} for run in runs]
    found = {
        key
        for key in keys
        if all(key in has and _restored(run, {key}) for run, has in zip(runs, own, strict=True) if key in run.settings)
    }
    return found if all(_restored(run, found & run.settings.keys()) for run in runs) else set()


def _restored(run: Named, keys: Set[str]) -> bool:
    """Whether settings of the method have the same values in a run's configuration where they are left out."""
    section = {key: value for key, value in _method(run).items() if f"method.{key}" not in keys}
    try:
        config = settings.check_config(RunConfig(**{**run.config, "method": section}))
    except (AlignError, ValidationError):  # of another version, or its method is not installed
        return False
    now = config.method.model_dump(mode="json")
    return all(now.get(key.removeprefix("method.")) == run.settings[key] for key in keys)


def _method(run: Named) -> dict[str, Any]:
    found = run.config.get("method")
    return found if isinstance(found, dict) else {}


def _name(run: Named, others: Sequence[Named], unasked: Set[str]) -> str:
    """Return the methods a run was trained with, and the settings that distinguish it from other runs of these methods."""
    if run.label is None:
        return START if run.path.name == "before" else run.path.resolve().name
    own = distinguishing(run, [other for other in others if other.label == run.label])
    shown = {key.removeprefix("method."): value for key, value in own.items() if key not in unasked}
    return " ".join([run.label, *(f"{key}={value}" for key, value in shown.items())])
