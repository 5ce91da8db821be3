"""Comparing runs on the same items: arms over seeds, paired contrasts, Holm's correction, a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from alignkit import Contrast, Estimate
from alignkit.errors import ConfigError

from alignkit_eval.comparison.arms import START, Group, RunResult, group, mean_cost, read_run
from alignkit_eval.comparison.folds import join_folds, start_of
from alignkit_eval.comparison.items import (
    Values,
    common_contrasts,
    common_suites,
    item_values,
    provenance_notes,
    shared_items,
)
from alignkit_eval.comparison.paired import Difference, Effect, holm, judge, minus
from alignkit_eval.comparison.result import Arm, Comparison, ContrastResult
from alignkit_eval.comparison.verdict import Judged, verdict_of
from alignkit_eval.statistics import transformed

_LARGEST = 300.0
"""Logarithm beyond which a ratio is as good as infinite: the end of an interval that reaches it is not given."""


def compare(
    runs: Sequence[Path | str], baseline: Path | str | None = None, *, names: Mapping[Path, str] | None = None
) -> Comparison:
    """Compare runs, paired on the items they were all evaluated on; runs that differ in the seed alone are one arm.

    Args:
        runs: run directories, or directories that ``align eval --output`` made.
        baseline: the run the others are compared with, or ``start`` for the start model they share (default: the first).
        names: what arms are called, by the directory of one of their runs (default: by what tells them apart).

    Raises:
        ConfigError: a directory cannot be read, or the runs were evaluated on different items.
    """
    if not runs:
        raise ConfigError("there is nothing to compare: name at least one run")
    read = join_folds([read_run(path) for path in _once([*runs, *([] if baseline in (None, START) else [baseline])])])
    called = {path.resolve(): name for path, name in (names or {}).items()}
    groups = [_renamed(found, called) for found in group(read)]
    if baseline == START:
        start = start_of(read)
        groups.insert(0, Group(START, {}, (start,)))
        first = groups[0]
    else:
        wanted = Path(baseline if baseline is not None else runs[0]).resolve()
        first = next(g for g in groups if any(path.resolve() == wanted for run in g.runs for path in run.paths))
    if len(groups) < 2:
        raise ConfigError(
            "there is one arm only: the runs differ in nothing but their seed; name a run to compare it with"
        )
    notes: list[str] = []
    suites = common_suites(groups, notes)
    notes += _notes(groups)
    table = _Table(groups, suites, notes)
    others = [g for g in groups if g is not first]
    contrasts = table.contrasts([(g, first) for g in others])
    pairs = table.contrasts([*((g, first) for g in others), *combinations(others, 2)], judging=True)
    verdict, winner = verdict_of(
        first.name,
        [g.name for g in groups],
        [contrast for _, contrast in contrasts],
        [Judged(*pair) for pair in pairs],
        one_seed=[g.name for g in groups if _trained(g) and len(g.runs) == 1],
    )
    return Comparison(
        baseline=first.name,
        arms=tuple(table.arm(g) for g in groups),
        contrasts=tuple(contrast for _, contrast in contrasts),
        verdict=verdict,
        winner=winner,
        notes=tuple(dict.fromkeys(notes)),
        settings=_shared(groups),
    )


class _Table:
    """Item values of every group, suite and contrast, read once."""

    def __init__(self, groups: Sequence[Group], suites: Sequence[str], notes: list[str]) -> None:
        self.notes = notes
        self.suites = {name: common_contrasts(name, groups, notes) for name in suites}
        self.values: dict[tuple[str, str, str], Values] = {}
        for name, contrasts in self.suites.items():
            items = shared_items(name, groups)
            notes += provenance_notes(name, groups)
            for g in groups:
                for contrast in contrasts:
                    self.values[g.name, name, contrast.metric] = item_values(g, name, contrast, items)

    def contrasts(
        self, pairs: Iterable[tuple[Group, Group]], *, judging: bool = False
    ) -> list[tuple[str, ContrastResult]]:
        """Return every contrast of every (arm, baseline) with its corrected p, and the baseline's name before it."""
        found = [
            (baseline.name, self._contrast(arm, baseline, suite, contrast))
            for arm, baseline in pairs
            for suite, contrasts in self.suites.items()
            for contrast in contrasts
            if contrast.verdict or not judging
        ]
        corrected = holm([result.p for _, result in found])
        return [(base, replace(result, p_holm=p)) for (base, result), p in zip(found, corrected, strict=True)]

    def _contrast(self, arm: Group, baseline: Group, suite: str, contrast: Contrast) -> ContrastResult:
        mine = self.values[arm.name, suite, contrast.metric]
        theirs = self.values[baseline.name, suite, contrast.metric]
        rows, base_rows = self._paired_seeds(arm, mine, baseline, theirs)
        difference = judge(minus(_pick(mine.effect, rows), _pick(theirs.effect, base_rows)), mine.clusters)
        if contrast.log:
            difference = _in_unit(difference, math.exp(min(float(theirs.effect.seeds[base_rows].mean()), _LARGEST)))
        return ContrastResult(
            arm=arm.name,
            suite=suite,
            metric=contrast.metric,
            p_holm=None,
            higher_is_better=contrast.higher_is_better,
            **difference._asdict(),
        )

    def _paired_seeds(self, arm: Group, mine: Values, baseline: Group, theirs: Values) -> tuple[list[int], list[int]]:
        """Return which rows of either side make pairs: those of shared seeds, else in order; it is noted what is left out."""
        # A model that was not trained here has no seed: it stands against every seed of the other.
        if not _trained(baseline):
            return list(range(len(mine.seeds))), [0] * len(mine.seeds)
        if not _trained(arm):
            return [0] * len(theirs.seeds), list(range(len(theirs.seeds)))
        shared = [seed for seed in mine.seeds if seed in theirs.seeds]
        between = f"{arm.name} and {baseline.name}"
        if shared:
            left = (set(mine.seeds) | set(theirs.seeds)) - set(shared)
            if left:
                self.notes.append(f"{between} are paired on the seeds both have; left out: {sorted(left)}")
            return [mine.seeds.index(s) for s in shared], [theirs.seeds.index(s) for s in shared]
        count = min(len(mine.seeds), len(theirs.seeds))
        self.notes.append(f"{between} share no seed and are paired in order")
        return list(range(count)), list(range(count))

    def arm(self, g: Group) -> Arm:
        """Return a group as the comparison reports it, its metrics over all its seeds."""
        metrics: dict[str, dict[str, Estimate]] = {}
        for suite, contrasts in self.suites.items():
            found = [run.results[suite].metrics for run in g.runs]
            metrics[suite] = {name: _mean(found, name) for name in found[0] if all(name in other for other in found)}
            if len(g.runs) > 1 or g.runs[0].folds:
                for contrast in contrasts:
                    metrics[suite][contrast.metric] = self._over_seeds(g, suite, contrast)
        return Arm(
            name=g.name,
            runs=tuple(run.path for run in g.runs),
            seeds=tuple(run.seed for run in g.runs),
            settings=g.settings,
            cost=mean_cost(g.runs),
            metrics=metrics,
        )

    def _over_seeds(self, g: Group, suite: str, contrast: Contrast) -> Estimate:
        values = self.values[g.name, suite, contrast.metric]
        found = judge(values.effect, values.clusters)
        estimate = Estimate(found.diff, found.low, found.high)
        return transformed(estimate, lambda x: math.exp(min(x, _LARGEST))) if contrast.log else estimate


def _once(paths: Sequence[Path | str | None]) -> list[Path]:
    return list({Path(path).resolve(): Path(path) for path in paths if path is not None}.values())


def _pick(whole: Effect, rows: list[int]) -> Effect:
    return Effect(whole.seeds[rows], whole.influence[rows], whole.share)


def _in_unit(difference: Difference, level: float) -> Difference:
    """Turn a difference of logarithms into one of the metric, at the baseline's level."""

    def unit(x: float | None) -> float | None:
        return None if x is None or x > _LARGEST else level * math.expm1(x)

    return difference._replace(
        diff=level * math.expm1(min(difference.diff, _LARGEST)),
        low=unit(difference.low),
        high=unit(difference.high),
        detectable=unit(difference.detectable),
    )


def _mean(found: Sequence[Mapping[str, Estimate]], name: str) -> Estimate:
    if len(found) == 1:
        return found[0][name]
    return Estimate(sum(metrics[name].value for metrics in found) / len(found))


# --------------------------------------------------------------------------------------------- what is said


def _notes(groups: Sequence[Group]) -> list[str]:
    """Return what a reader must know of the arms."""
    notes = []
    if any(_trained(g) and len(g.runs) == 1 for g in groups):
        notes.append("an arm with one seed is compared on that seed: intervals and p say nothing about other seeds")
    folds = max(len(run.folds) for g in groups for run in g.runs)
    if folds:
        notes.append(
            f"every item is judged by the model of the fold that did not train on it ({folds} folds, which share training rows: "
            "what training leaves to chance counts once a seed)"
        )
    notes += _trained_differently(groups)
    by_method: dict[str, dict[str, Any]] = {}
    for g in groups:
        run: RunResult = g.runs[0]
        if run.method is None:
            continue
        own = {
            key: value for key, value in run.conventions.items() if key in ("convention", "nll_scope", "nll_reduction")
        }
        for key, value in own.items():
            seen = by_method.setdefault(run.method, {}).setdefault(key, value)
            if seen != value:
                notes.append(f"the arms of {run.method} follow different loss conventions: {key} is {seen} and {value}")
    return notes


def _trained_differently(groups: Sequence[Group]) -> list[str]:
    """Return the settings, outside of the methods' own, that tell one method's arms from another's as well."""
    values: dict[str, dict[str, list[Any]]] = {}  # key -> methods -> the arms' values
    for g in groups:
        for key, value in g.runs[0].settings.items() if _trained(g) else ():
            if not key.startswith(("method.", "start.", "model.name")):
                found = values.setdefault(key, {}).setdefault(str(g.runs[0].label), [])
                found += [] if value in found else [value]
    said = [
        f"{key} is {', '.join(' or '.join(map(str, found)) + f' ({label})' for label, found in by_label.items())}"
        for key, by_label in sorted(values.items())
        if any(found != next(iter(by_label.values())) for found in by_label.values())
    ]
    return [f"the methods were not trained alike: {'; '.join(said)}"] if said else []


def _trained(g: Group) -> bool:
    """Whether a group is of runs, not a model that was evaluated on its own."""
    return g.runs[0].method is not None


def _shared(groups: Sequence[Group]) -> dict[str, Any]:
    settings = [run.settings for g in groups for run in g.runs if run.method is not None]
    if not settings:
        return {}
    return {key: value for key, value in settings[0].items() if all(other.get(key) == value for other in settings)}


def _renamed(found: Group, names: Mapping[Path, str]) -> Group:
    paths = [path.resolve() for run in found.runs for path in run.paths]
    wanted = [names[path] for path in paths if path in names]
    return replace(found, name=wanted[0]) if wanted else found
