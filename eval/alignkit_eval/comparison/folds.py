"""Cross-validation: the runs of one configuration and seed that each held another fold out, read as one.

Every item is then judged by the model that did not train on it, and arms are compared on all items. Models of different folds
share most of their training rows, so what training leaves to chance counts once a seed, not once a fold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignkit import SuiteResult
from alignkit.errors import ConfigError
from alignkit.system.files import digest, to_json

from alignkit_eval.comparison.arms import RunResult, mean_cost, results_in

_FOLD, _FOLDS = "data.fold", "data.folds"


def join_folds(runs: Sequence[RunResult]) -> list[RunResult]:
    """Return the runs, those that differ in their fold alone as one; runs of one and the same fold stay as they are.

    Raises:
        ConfigError: a fold is missing.
    """
    if len({run.settings.get(_FOLD) for run in runs if run.settings.get(_FOLDS)}) < 2:
        return list(runs)
    together: dict[str, list[RunResult]] = {}
    for run in runs:
        own = {key: value for key, value in run.settings.items() if key != _FOLD}
        about = [str(run.path)] if not run.settings.get(_FOLDS) else [run.label, run.seed, run.start, to_json(own)]
        together.setdefault(json.dumps(about, sort_keys=True), []).append(run)
    return [_joined(members) if members[0].settings.get(_FOLDS) else members[0] for members in together.values()]


def start_of(runs: Sequence[RunResult]) -> RunResult:
    """Return the start model all runs share; raises ``ConfigError`` where they do not share one."""
    for run in runs:
        if run.start is None:
            raise ConfigError(f"there is no start model to compare with: {run.path} is not known to have one")
        if run.start != runs[0].start:
            raise ConfigError(
                f"there is no one start model to compare with: {runs[0].path} and {run.path} started from different ones"
            )
    directories = [path / "eval" / "before" for path in runs[0].paths]
    found = [results_in(directory) for directory in directories]
    for directory, results in zip(directories, found, strict=True):
        if not results:
            raise ConfigError(f"{directory} holds no evaluation of the start model (eval.before was off)")
    if len(found) == 1:
        return RunResult(directories[0], 0, None, {}, found[0])
    return RunResult(directories[0], 0, None, {}, _join_results(found), folds=tuple(directories))


def _joined(runs: Sequence[RunResult]) -> RunResult:
    """Return one run with the items of all folds."""
    first = runs[0]
    by_fold = {int(run.settings[_FOLD]): run for run in runs}
    folds = int(first.settings[_FOLDS])
    missing = [fold for fold in range(folds) if fold not in by_fold]
    if missing:
        raise ConfigError(
            f"{first.path} is one of {folds} folds, and no run of fold {missing[0]} is among those to compare"
        )
    ordered = [by_fold[fold] for fold in range(folds)]
    return replace(
        ordered[0],
        settings={key: value for key, value in first.settings.items() if key != _FOLD},
        results=_join_results([run.results for run in ordered]),
        cost=mean_cost(ordered),
        folds=tuple(run.path for run in ordered),
    )


def _join_results(results: Sequence[Mapping[str, SuiteResult]]) -> dict[str, SuiteResult]:
    # Metrics follow from the items once it is known by which contrasts the arms are compared.
    everywhere = [name for name in results[0] if all(name in other for other in results)]
    return {name: _join([found[name] for found in results]) for name in everywhere}


def _join(found: Sequence[SuiteResult]) -> SuiteResult:
    contents = [one.provenance.get("content") for one in found]
    content = contents[0]
    if len(set(contents)) > 1:
        content = digest(contents)
    by_id: dict[str, list[Mapping[str, Any]]] = {}
    for item in (item for one in found for item in one.items):
        by_id.setdefault(str(item["id"]), []).append(item)
    return replace(
        found[0],
        n=len(by_id),
        clusters=len({str(items[0]["cluster"]) for items in by_id.values()}),
        metrics={},
        items=[_mean_item(items) for items in by_id.values()],
        provenance={**found[0].provenance, "content": content},
    )


def _mean_item(items: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return an item that the models of all folds were asked (a text that is nobody's held-out row) with their mean numbers."""
    if len(items) == 1:
        return items[0]
    mean: dict[str, list[Any]] = {key: [item.get(key) for item in items] for key in items[0]}
    return {
        key: sum(values) / len(values) if all(isinstance(v, float) for v in values) else values[0]
        for key, values in mean.items()
    }
