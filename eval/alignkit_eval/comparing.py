"""Comparing runs on the same items: arms over seeds, paired contrasts, Holm's correction, a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from alignkit import Contrast, Estimate, SuiteResult
from alignkit.errors import ConfigError

from alignkit_eval.arms import START, Group, RunResult, group, mean_cost, read_run, start_of
from alignkit_eval.comparison import Arm, Comparison, ContrastResult
from alignkit_eval.paired import Difference, Effect, effect, holm, judge, minus
from alignkit_eval.verdict import Judged, verdict_of


def compare(runs: Sequence[Path | str], baseline: Path | str | None = None) -> Comparison:
    """Compare runs, paired on the items they were all evaluated on; runs that differ in the seed alone are one arm.

    Args:
        runs: run directories, or directories that ``align eval --output`` made.
        baseline: the run the others are compared with, or ``start`` for the start model they share (default: the first).

    Raises:
        ConfigError: a directory cannot be read, or the runs were evaluated on different items.
    """
    read = [read_run(path) for path in _once([*runs, *([] if baseline in (None, START) else [baseline])])]
    groups = group(read)
    if baseline == START:
        start = start_of(read)
        groups.insert(0, Group(START, {}, (start,)))
        first = groups[0]
    else:
        wanted = Path(baseline if baseline is not None else runs[0]).resolve()
        first = next(g for g in groups if any(run.path.resolve() == wanted for run in g.runs))
    if len(groups) < 2:
        raise ConfigError(
            "there is one arm only: the runs differ in nothing but their seed; name a run to compare it with"
        )
    notes: list[str] = []
    suites = _common_suites(groups, notes)
    notes += _said(groups)
    table = _Table(groups, suites, notes)
    others = [g for g in groups if g is not first]
    contrasts = table.contrasts([(g, first) for g in others])
    pairs = table.contrasts(list(combinations(groups, 2)), judging=True)
    verdict, winner = verdict_of(first.name, [g.name for g in groups], contrasts, [Judged(*pair) for pair in pairs])
    return Comparison(
        baseline=first.name,
        arms=tuple(table.arm(g) for g in groups),
        contrasts=tuple(contrast for _, contrast in contrasts),
        verdict=verdict,
        winner=winner,
        notes=tuple(dict.fromkeys(notes)),
        settings=_shared(groups),
    )


class Values(NamedTuple):
    """One contrast's item values of one group: ``[K, n]`` each, and the cluster of each item."""

    seeds: tuple[int, ...]
    effect: Effect
    clusters: list[str]


class _Table:
    """Item values of every group, suite and contrast, read once."""

    def __init__(self, groups: Sequence[Group], suites: Sequence[str], notes: list[str]) -> None:
        self.notes = notes
        self.suites = {name: _contrasts(name, groups, notes) for name in suites}
        self.values: dict[tuple[str, str, str], Values] = {}
        for name, contrasts in self.suites.items():
            ids = _ids(name, groups)
            for g in groups:
                for contrast in contrasts:
                    self.values[g.name, name, contrast.metric] = _values(g, name, contrast, ids)

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
            difference = _in_unit(difference, math.exp(float(theirs.effect.seeds[base_rows].mean())))
        return ContrastResult(
            arm=arm.name,
            suite=suite,
            metric=contrast.metric,
            diff=difference.diff,
            low=difference.low,
            high=difference.high,
            p=difference.p,
            p_holm=None,
            n=difference.n,
            clusters=difference.clusters,
            seeds=difference.seeds,
            detectable=difference.detectable,
            higher_is_better=contrast.higher_is_better,
            test=difference.test,
        )

    def _paired_seeds(self, arm: Group, mine: Values, baseline: Group, theirs: Values) -> tuple[list[int], list[int]]:
        """Return which rows of either side make pairs: those of shared seeds, else in order."""
        if len(theirs.seeds) == 1 and baseline.runs[0].method is None:  # a model that was not trained here has no seed
            return list(range(len(mine.seeds))), [0] * len(mine.seeds)
        shared = [seed for seed in mine.seeds if seed in theirs.seeds]
        if shared:
            left = (set(mine.seeds) | set(theirs.seeds)) - set(shared)
            if left:
                self.notes.append(
                    f"{arm.name} and {baseline.name} are paired on the seeds both have; left out: {sorted(left)}"
                )
            return [mine.seeds.index(s) for s in shared], [theirs.seeds.index(s) for s in shared]
        count = min(len(mine.seeds), len(theirs.seeds))
        self.notes.append(f"{arm.name} and {baseline.name} share no seed and are paired in order")
        return list(range(count)), list(range(count))

    def arm(self, g: Group) -> Arm:
        """Return a group as the comparison reports it, its metrics over all its seeds."""
        metrics: dict[str, dict[str, Estimate]] = {}
        for suite, contrasts in self.suites.items():
            found = [run.results[suite].metrics for run in g.runs]
            metrics[suite] = {name: _mean(found, name) for name in found[0] if all(name in other for other in found)}
            if len(g.runs) > 1:
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
        return Estimate(*(None if x is None else math.exp(x) for x in estimate)) if contrast.log else estimate  # type: ignore[arg-type]


def _once(paths: Sequence[Path | str | None]) -> list[Path]:
    return list({Path(path).resolve(): Path(path) for path in paths if path is not None}.values())


def _pick(whole: Effect, rows: list[int]) -> Effect:
    return Effect(whole.seeds[rows], whole.influence[rows], whole.share)


def _in_unit(difference: Difference, level: float) -> Difference:
    """Turn a difference of logarithms into one of the metric, at the baseline's level."""

    def unit(x: float | None) -> float | None:
        return None if x is None else level * math.expm1(x)

    return difference._replace(
        diff=level * math.expm1(difference.diff),
        low=unit(difference.low),
        high=unit(difference.high),
        detectable=unit(difference.detectable),
    )


def _mean(found: Sequence[Mapping[str, Estimate]], name: str) -> Estimate:
    if len(found) == 1:
        return found[0][name]
    return Estimate(sum(metrics[name].value for metrics in found) / len(found))


# --------------------------------------------------------------------------------------------- what is comparable


def _common_suites(groups: Sequence[Group], notes: list[str]) -> list[str]:
    """Return the suites every run has results of, with one setting each."""
    runs = [run for g in groups for run in g.runs]
    everywhere = [name for name in runs[0].results if all(name in run.results for run in runs)]
    for name in sorted({name for run in runs for name in run.results} - set(everywhere)):
        missing = next(run for run in runs if name not in run.results)
        notes.append(f"suite {name} is left out: {missing.path} has no result of it")
    comparable = []
    for name in everywhere:
        settings = [run.results[name].settings for run in runs]
        odd = next((run for run, other in zip(runs, settings, strict=True) if other != settings[0]), None)
        if odd is None:
            comparable.append(name)
        else:
            notes.append(f"suite {name} is left out: {odd.path} and {runs[0].path} ran it with different settings")
    if not comparable:
        raise ConfigError("the runs have no suite in common: evaluate them alike with align eval")
    return comparable


def _contrasts(suite: str, groups: Sequence[Group], notes: list[str]) -> list[Contrast]:
    """Return the contrasts every run of every group can be compared by."""
    results = [run.results[suite] for g in groups for run in g.runs]
    common = [c for c in results[0].contrasts if all(c.metric in {o.metric for o in r.contrasts} for r in results)]
    tokenizers = {result.provenance.get("tokenizer") for result in results}
    if len(tokenizers) > 1:
        notes += [f"{c.metric} is left out: the models have different tokenizers" for c in common if c.one_tokenizer]
        common = [c for c in common if not c.one_tokenizer]
    rules = {repr(sorted(result.provenance.get("rules", {}).items())) for result in results}
    if len(rules) > 1:
        notes.append(
            f"suite {suite}: rows became tokens by different rules (data.max_length, append_eos or columns differ)"
        )
    return common


def _ids(suite: str, groups: Sequence[Group]) -> list[str]:
    """Return the ids of the items, in the order they are compared; raises ``ConfigError`` where runs have different ones."""
    runs = [run for g in groups for run in g.runs]
    first = runs[0].results[suite]
    ids = [str(item["id"]) for item in first.items]
    for run in runs[1:]:
        result = run.results[suite]
        _same_items(suite, runs[0].path, ids, run.path, [str(item["id"]) for item in result.items])
        _same_content(suite, runs[0].path, first, run.path, result)
    return ids


def _same_items(suite: str, path: Path, ids: list[str], other_path: Path, others: list[str]) -> None:
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ConfigError(f"suite {suite} of {path} has the id {twice!r} twice: items cannot be paired")
    mine, theirs = set(ids), set(others)
    if mine == theirs and len(others) == len(theirs):
        return
    only, only_theirs = [i for i in ids if i not in theirs], [i for i in others if i not in mine]
    said = [
        f"{len(names):,} only in {where} (first: {names[0]})"
        for names, where in ((only, path), (only_theirs, other_path))
        if names
    ]
    raise ConfigError(f"suite {suite} was run on different items: {' and '.join(said)}")


def _same_content(suite: str, path: Path, first: SuiteResult, other_path: Path, other: SuiteResult) -> None:
    mine, theirs = first.provenance.get("content"), other.provenance.get("content")
    if mine != theirs:
        raise ConfigError(
            f"suite {suite} was run on different items: {path} and {other_path} have the same ids, but other texts behind them"
        )


def _values(g: Group, suite: str, contrast: Contrast, ids: Sequence[str]) -> Values:
    numerators, denominators, clusters = [], [], list[str]()
    for run in g.runs:
        items = {str(item["id"]): item for item in run.results[suite].items}
        rows = [items[i] for i in ids if all(items[i].get(key) == value for key, value in contrast.where.items())]
        numerators.append([float(item[contrast.numerator]) for item in rows])
        denominators.append(
            [1.0 if contrast.denominator is None else float(item[contrast.denominator]) for item in rows]
        )
        clusters = [str(item["cluster"]) for item in rows]
    return Values(tuple(run.seed for run in g.runs), effect(np.array(numerators), np.array(denominators)), clusters)


# --------------------------------------------------------------------------------------------- what is said


def _said(groups: Sequence[Group]) -> list[str]:
    """Return what a reader must know of the arms."""
    notes = []
    if any(len(g.runs) == 1 and g.runs[0].method for g in groups):
        notes.append("an arm with one seed is compared on that seed: intervals and p say nothing about other seeds")
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


def _shared(groups: Sequence[Group]) -> dict[str, Any]:
    settings = [run.settings for g in groups for run in g.runs if run.method is not None]
    if not settings:
        return {}
    return {key: value for key, value in settings[0].items() if all(other.get(key) == value for other in settings)}
