"""Cross-validation: runs of one configuration and seed, each with another held-out fold, joined into one.

Every item is then scored by the model that did not train on it, and arms are compared on all items. Models of different
folds share most of their training rows, so training noise is counted once per seed, not once per fold.
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
    """Join runs that differ only in their held-out fold; runs without folds, or all with the same fold, are unchanged.

    Raises:
        ConfigError: a fold is missing.
    """
    if len({run.settings.get(_FOLD) for run in runs if run.settings.get(_FOLDS)}) < 2:
        return list(runs)
    together: dict[str, list[RunResult]] = {}
    for run in runs:
        own = {key: value for key, value in run.settings.items() if key != _FOLD}
        key = [str(run.path)] if not run.settings.get(_FOLDS) else [run.label, run.seed, run.start, to_json(own)]
        together.setdefault(json.dumps(key, sort_keys=True), []).append(run)
    return [_joined(members) if members[0].settings.get(_FOLDS) else members[0] for members in together.values()]


def start_of(runs: Sequence[RunResult]) -> RunResult:
    """Return the start model that all runs share.

    Raises:
        ConfigError: the runs started from different models, or the start model was not evaluated.
    """
    for run in runs:
        if run.start is None:
            raise ConfigError(f"there is no start model to compare with: {run.path} does not record one")
        if run.start != runs[0].start:
            raise ConfigError(
                f"there is no common start model to compare with: {runs[0].path} and {run.path} started from different models"
            )
    directories = [path / "eval" / "before" for path in runs[0].paths]
    found = [results_in(directory) for directory in directories]
    for directory, results in zip(directories, found, strict=True):
        if not results:
            raise ConfigError(f"{directory} has no evaluation of the start model (eval.before was off)")
    if len(found) == 1:
        return RunResult(directories[0], 0, None, {}, found[0])
    return RunResult(directories[0], 0, None, {}, _join_results(found), folds=tuple(directories))


def _joined(runs: Sequence[RunResult]) -> RunResult:
    """Return the runs of all folds as one run with all their items."""
    first = runs[0]
    by_fold = {int(run.settings[_FOLD]): run for run in runs}
    folds = int(first.settings[_FOLDS])
    missing = [fold for fold in range(folds) if fold not in by_fold]
    if missing:
        raise ConfigError(
            f"{first.path} is one of {folds} folds, and the run of fold {missing[0]} is not among the runs to compare"
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
    # Metrics are computed from the items later, for the contrasts by which the arms are compared.
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
    """Return an item evaluated in several folds (a text outside of the data) with the means of its numbers."""
    if len(items) == 1:
        return items[0]
    mean: dict[str, list[Any]] = {key: [item.get(key) for item in items] for key in items[0]}
    return {
        key: sum(values) / len(values) if all(isinstance(v, float) for v in values) else values[0]
        for key, values in mean.items()
    }
