"""Notes on how the arms of a comparison were trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkit_eval.comparison.arms import Group


def training_notes(groups: Sequence[Group]) -> list[str]:
    """Return notes on how the arms were trained and how they are compared."""
    notes = []
    if any(map(has_one_seed, groups)):
        notes.append("for an arm with one seed, intervals and p do not cover the variation between seeds")
    folds = max(len(run.folds) for g in groups for run in g.runs)
    if folds:
        notes.append(
            f"every item is scored by the model of the fold that did not train on it ({folds} folds; they share training rows, "
            "so training noise is counted once per seed)"
        )
    notes += [
        f"{run.path}: settings were changed during the run ({run.settings['changes']})"
        for group in groups
        for run in group.runs
        if "changes" in run.settings
    ]
    engines = dict.fromkeys(str(run.settings.get("run.engine")) for g in groups if is_trained(g) for run in g.runs)
    if len(engines) > 1:
        notes.append(
            f"the arms were trained by different engines: {', '.join(engines)} (the same loss, order and schedule; numbers "
            "differ by rounding and by random draws)"
        )
    notes += _different_training(groups)
    seen: dict[tuple[str | None, str], Any] = {}
    for run in (g.runs[0] for g in groups if is_trained(g)):
        for key, value in run.conventions.items():
            first = seen.setdefault((run.method, key), value)
            if first != value and key in ("convention", "nll_scope", "nll_reduction"):
                notes.append(f"the arms of {run.method} use different loss conventions: {key} is {first} and {value}")
    return notes


def _different_training(groups: Sequence[Group]) -> list[str]:
    """Return a note on training settings, other than the methods' own, that differ between methods."""
    values: dict[str, dict[str, list[Any]]] = {}  # key -> methods -> the arms' values
    for g in groups:
        for key, value in g.runs[0].settings.items() if is_trained(g) else ():
            if not key.startswith(("method.", "start.", "model.name")):
                found = values.setdefault(key, {}).setdefault(str(g.runs[0].label), [])
                found += [] if value in found else [value]
    differences = [
        f"{key} is {', '.join(' or '.join(map(str, found)) + f' ({label})' for label, found in by_label.items())}"
        for key, by_label in sorted(values.items())
        if any(found != next(iter(by_label.values())) for found in by_label.values())
    ]
    return [f"the methods were trained with different settings: {'; '.join(differences)}"] if differences else []


def is_trained(g: Group) -> bool:
    """Whether a group consists of training runs, not of a model evaluated on its own."""
    return g.runs[0].method is not None


def has_one_seed(g: Group) -> bool:
    """Whether a group is a method with one seed."""
    return is_trained(g) and len(g.runs) == 1
