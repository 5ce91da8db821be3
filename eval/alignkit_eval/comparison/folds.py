"""Cross-validation: runs of one configuration and seed, each with another held-out fold, joined into one.

Every item is then scored by the model that did not train on it, and arms are compared on all items. Models of different
folds share most of their training rows, so training noise is counted once per seed, not once per fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignkit import SuiteResult
from alignkit.errors import ConfigError
from alignkit.system.files import digest

from alignkit_eval.comparison.arms import RunResult, grouped, mean_cost, results_in

_FOLD, _FOLDS = "data.fold", "data.folds"


def join_folds(runs: Sequence[RunResult]) -> list[RunResult]:
    """Join runs that differ only in their held-out fold; runs without folds, or all with the same fold, are unchanged.

    Raises:
        ConfigError: a fold is missing.
    """
    if len({run.settings.get(_FOLD) for run in runs if run.settings.get(_FOLDS)}) < 2:
        return list(runs)

    def identity(run: RunResult) -> Any:
        return (run.label, run.seed, run.start, _without_fold(run)) if run.settings.get(_FOLDS) else run.path

    return [_joined(same) if same[0].settings.get(_FOLDS) else same[0] for same in grouped(runs, identity)]


def _without_fold(run: RunResult) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if key != _FOLD}


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
    found = {path / "eval" / "before": results_in(path / "eval" / "before") for path in runs[0].paths}
    for directory, results in found.items():
        if not results:
            raise ConfigError(f"{directory} has no evaluation of the start model (eval.before was off)")
    first, *others = found
    if not others:
        return RunResult(first, 0, None, {}, found[first])
    return RunResult(first, 0, None, {}, _join_results(list(found.values())), folds=tuple(found))


def _joined(runs: Sequence[RunResult]) -> RunResult:
    """Return the runs of all folds as one run with all their items."""
    by_fold = {int(run.settings[_FOLD]): run for run in runs}
    folds = int(runs[0].settings[_FOLDS])
    missing = [fold for fold in range(folds) if fold not in by_fold]
    if missing:
        raise ConfigError(
            f"{runs[0].path} is one of {folds} folds, and the run of fold {missing[0]} is not among the runs to compare"
        )
    ordered = [by_fold[fold] for fold in range(folds)]
    return replace(
        ordered[0],
        settings=_without_fold(runs[0]),
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
    by_id: dict[str, list[Mapping[str, Any]]] = {}
    for item in (item for one in found for item in one.items):
        by_id.setdefault(str(item["id"]), []).append(item)
    return replace(
        found[0],
        n=len(by_id),
        clusters=len({str(items[0]["cluster"]) for items in by_id.values()}),
        metrics={},
        left_out=tuple(dict.fromkeys(omission for one in found for omission in one.left_out)),
        notes=tuple(dict.fromkeys(note for one in found for note in one.notes)),
        items=[_mean_item(items) for items in by_id.values()],
        provenance={**found[0].provenance, "content": contents[0] if len(set(contents)) == 1 else digest(contents)},
    )


def _mean_item(items: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return an item evaluated in several folds (a text outside of the data) with the means of its numbers."""
    if len(items) == 1:
        return items[0]
    columns: dict[str, list[Any]] = {key: [item.get(key) for item in items] for key in items[0]}
    return {
        key: sum(values) / len(values) if all(isinstance(v, float) for v in values) else values[0]
        for key, values in columns.items()
    }
