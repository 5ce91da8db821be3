"""Comparison of runs on the same items: arms over seeds, paired contrasts, Holm's correction, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from alignkit import Contrast, Estimate, SuiteResult
from alignkit.errors import ConfigError

from alignkit_eval.comparison.arms import START, Group, RunResult, group, mean_cost, read_run, runs_of
from alignkit_eval.comparison.folds import join_folds, start_of
from alignkit_eval.comparison.items import (
    Values,
    bounded,
    common_contrasts,
    common_suites,
    item_values,
    paired_seeds,
    provenance_notes,
    shared_items,
    source_notes,
    step_of,
    weights_notes,
)
from alignkit_eval.comparison.letters import letters_of
from alignkit_eval.comparison.notes import has_one_seed, is_trained, training_notes
from alignkit_eval.comparison.paired import (
    Difference,
    estimate_over_seeds,
    holm,
    judge,
    judge_draws,
    minus,
)
from alignkit_eval.comparison.peeking import peeking_notes
from alignkit_eval.comparison.result import Arm, Comparison, ContrastResult
from alignkit_eval.comparison.rules import Rules, described, recorded_rules
from alignkit_eval.comparison.verdict import Judged, verdict_of
from alignkit_eval.statistics import transformed

_LARGEST = 300.0
"""Logarithms above this are treated as infinite: an interval end that reaches it is None."""


def compare(
    runs: Sequence[Path | str],
    baseline: Path | str | None = None,
    *,
    names: Mapping[Path, str] | None = None,
    margins: Mapping[str, float] | None = None,
    objective: Sequence[str] | None = None,
    guards: Sequence[str] | None = None,
) -> Comparison:
    """Compare runs, paired on the items they were all evaluated on. Runs that differ only in their seed are one arm.

    Args:
        runs: run directories, directories written by ``align eval --output``, or of sweeps, for all of their runs.
        baseline: the run to compare the others with, or ``start`` for their common start model (default: the first run).
        names: names of arms, by the directory of one of their runs (default: their distinguishing settings).
        margins: differences that count as none, by metric.
        objective: metrics that decide which arm is better.
        guards: metrics that must not be worse for a winner.

    Margins, objective and guards that are not given are those of the baseline's configuration (``compare``), else the suites'.

    Raises:
        ConfigError: a directory cannot be read, the runs were evaluated on different items, or have no metric of that name.
    """
    if not runs:
        raise ConfigError("there is nothing to compare: name at least one run")
    named = [*runs, *([] if baseline is None or baseline == START else [baseline])]
    paths = [path for one in named for path in runs_of(Path(one))]
    found = [read_run(path) for path in {path.resolve(): path for path in paths}.values()]
    read = join_folds(found)
    called = {path.resolve(): name for path, name in (names or {}).items()}
    groups = [_renamed(found, called) for found in group(read)]
    if baseline == START:
        first = Group(START, {}, (start_of(read),))
        groups.insert(0, first)
    else:
        wanted = (paths[0] if baseline is None else Path(baseline)).resolve()
        first = next(g for g in groups if any(path.resolve() == wanted for run in g.runs for path in run.paths))
    if len(groups) < 2:
        raise ConfigError("there is only one arm: the runs differ only in their seed; add a run to compare them with")
    notes = weights_notes(found) + source_notes(found)
    suites = common_suites(groups, notes)
    notes += training_notes(groups) + peeking_notes(groups)
    others = [g for g in groups if g is not first]
    configs = [run.config for g in (first, *others) for run in g.runs if run.config]
    given = Rules(
        None if objective is None else tuple(objective), None if guards is None else tuple(guards), dict(margins or {})
    )
    table = _Table(groups, suites, notes, given, recorded_rules(configs, notes))
    with_first = [(g, first) for g in others]
    contrasts = [contrast for _, contrast in table.contrasts(with_first)]
    every = [*with_first, *combinations(others, 2)]
    pairs = table.contrasts(every, lambda c: bool(c.verdict))
    verdict, winner = verdict_of(
        first.name,
        [g.name for g in groups],
        contrasts,
        [*pairs, *table.contrasts(every, lambda c: c.guard)],
        one_seed=[g.name for g in groups if has_one_seed(g)],
    )
    return Comparison(
        baseline=first.name,
        arms=tuple(table.arm(g) for g in groups),
        contrasts=tuple(contrasts),
        verdict=verdict,
        winner=winner,
        pairs=tuple(pair.contrast for pair in pairs),
        letters=letters_of([g.name for g in groups], pairs),
        notes=tuple(dict.fromkeys(notes)),
        settings=_common_settings(groups),
        rules=described(table.suites),
    )


def changes(
    before: Mapping[str, SuiteResult], after: Mapping[str, SuiteResult]
) -> dict[tuple[str, str], ContrastResult]:
    """Return the paired change of every metric, (suite, metric), that both evaluations of a run have on the same items."""
    found: dict[tuple[str, str], ContrastResult] = {}
    for suite in before.keys() & after.keys():
        runs = [RunResult(Path(n), 0, None, {}, {suite: of[suite]}) for n, of in (("before", before), ("after", after))]
        base, arm = (Group(run.path.name, {}, (run,)) for run in runs)
        with suppress(ConfigError):  # other items, or a number that is not finite
            table = _Table([base, arm], common_suites([base, arm], []), [], Rules(), Rules())
            found |= {(c.suite, c.metric): c for _, c in table.contrasts([(arm, base)])}
    return found


class _Table:
    """Item values of every group, suite and contrast."""

    def __init__(
        self, groups: Sequence[Group], suites: Sequence[str], notes: list[str], given: Rules, recorded: Rules
    ) -> None:
        self.notes = notes
        found = {name: common_contrasts(name, groups, notes) for name in suites}
        given.require(found)
        notes += recorded.unmeasured(found)
        self.suites = given.over(recorded).applied(found)
        self.values: dict[tuple[str, str, str], Values] = {}
        for name, contrasts in self.suites.items():
            items = shared_items(name, groups)
            notes += provenance_notes(name, groups)
            for g in groups:
                for contrast in contrasts:
                    self.values[g.name, name, contrast.metric] = item_values(g, name, contrast, items)
            self.suites[name] = [bounded(c, (self.values[g.name, name, c.metric] for g in groups)) for c in contrasts]

    def contrasts(
        self, pairs: Iterable[tuple[Group, Group]], which: Callable[[Contrast], bool] = lambda contrast: True
    ) -> list[Judged]:
        """Return the contrasts of every (arm, baseline), with p corrected over all of these."""
        chosen = [
            (arm, baseline, suite, contrast)
            for arm, baseline in pairs
            for suite, contrasts in self.suites.items()
            for contrast in contrasts
            if which(contrast)
        ]
        found = [self._contrast(*about, tests=max(1, len(chosen))) for about in chosen]
        models = iter(_corrected([result.models for result in found if result.models]))
        whole = [replace(result, models=next(models)) if result.models else result for result in _corrected(found)]
        return [Judged(result.baseline, result) for result in whole]

    def _contrast(self, arm: Group, baseline: Group, suite: str, contrast: Contrast, *, tests: int) -> ContrastResult:
        mine = self.values[arm.name, suite, contrast.metric]
        theirs = self.values[baseline.name, suite, contrast.metric]
        rows, base_rows = self._paired_seeds(arm, mine, baseline, theirs)
        margin = contrast.margin
        within = math.log1p(margin) if margin is not None and contrast.log else margin
        paired = minus(mine.effect.at(rows), theirs.effect.at(base_rows))
        low, high = contrast.bounds
        reach = math.inf if low is None or high is None else high - low
        if mine.draws is not None and theirs.draws is not None:
            draws = mine.draws[rows] - theirs.draws[base_rows]
            usable = draws[:, np.isfinite(draws).all(0)]
            count = len(set(mine.clusters))
            difference = judge_draws(paired.seeds, usable, len(mine.clusters), count, within, tests=tests)
        else:
            step = step_of(mine, theirs)
            difference = judge(paired, mine.clusters, within, tests=tests, step=step, reach=reach)
        if contrast.log:
            difference = _in_metric_unit(difference, _exp(float(theirs.effect.seeds[base_rows].mean())))
        about = difference._asdict()
        models = about.pop("models")
        result = ContrastResult(
            arm=arm.name,
            suite=suite,
            metric=contrast.metric,
            p_holm=None,
            higher_is_better=contrast.higher_is_better,
            baseline=baseline.name,
            guard=contrast.guard,
            deciding=bool(contrast.verdict),
            margin=margin,
            log=contrast.log,
            **about,
        )
        return (
            result if models is None else replace(result, models=replace(result, **models._asdict(), seeds_needed=None))
        )

    def _paired_seeds(self, arm: Group, mine: Values, baseline: Group, theirs: Values) -> tuple[list[int], list[int]]:
        """Return the positions of the paired seeds on either side: shared seeds, or else in order. What is left out is noted."""
        # A model without a training run has no seed and is compared with every seed of the other side.
        if not is_trained(baseline):
            return list(range(len(mine.seeds))), [0] * len(mine.seeds)
        if not is_trained(arm):
            return [0] * len(theirs.seeds), list(range(len(theirs.seeds)))
        between = f"{arm.name} and {baseline.name}"
        shared = {*mine.seeds} & {*theirs.seeds}
        if not shared:
            self.notes.append(f"{between} have no common seed and are paired in order")
        elif left := {*mine.seeds, *theirs.seeds} - shared:
            self.notes.append(f"{between} are paired on their common seeds; left out: {sorted(left)}")
        return paired_seeds(mine.seeds, theirs.seeds)

    def arm(self, g: Group) -> Arm:
        """Return a group as an arm, with metrics over all its seeds."""
        metrics: dict[str, dict[str, Estimate]] = {}
        for suite, contrasts in self.suites.items():
            found = [run.results[suite].metrics for run in g.runs]
            metrics[suite] = dict(found[0])
            if len(found) > 1:
                shared = [name for name in found[0] if all(name in other for other in found)]
                metrics[suite] = {name: Estimate(sum(f[name].value for f in found) / len(found)) for name in shared}
            if len(found) > 1 or g.runs[0].folds:
                metrics[suite] |= {c.metric: self._over_seeds(g, suite, c) for c in contrasts}
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
        if values.draws is not None:
            found = judge_draws(values.effect.seeds, values.draws, len(values.clusters), len(set(values.clusters)))
            return Estimate(found.diff, found.low, found.high)
        estimate = Estimate(*estimate_over_seeds(values.effect, values.clusters, contrast.bounds))
        return transformed(estimate, _exp) if contrast.log else estimate


def _corrected(found: Sequence[ContrastResult]) -> list[ContrastResult]:
    """Return results with p corrected over them."""
    different, equivalent = holm([r.p for r in found]), holm([r.p_equivalent for r in found])
    return [
        replace(result, p_holm=p, p_equivalent_holm=q)
        for result, p, q in zip(found, different, equivalent, strict=True)
    ]


def _exp(log: float) -> float:
    return math.exp(min(log, _LARGEST))


def _in_metric_unit(difference: Difference, level: float) -> Difference:
    """Convert a difference of logarithms to the metric's unit, at the baseline's value ``level``."""

    def unit(x: float | None) -> float | None:
        return None if x is None or x > _LARGEST else level * math.expm1(x)

    def ends(answer: Any) -> Any:
        return answer._replace(**{key: unit(getattr(answer, key)) for key in ("low", "high", "detectable")})

    diff = level * math.expm1(min(difference.diff, _LARGEST))
    return ends(difference)._replace(diff=diff, models=difference.models and ends(difference.models))  # type: ignore[no-any-return]


def _common_settings(groups: Sequence[Group]) -> dict[str, Any]:
    settings = [run.settings for g in groups for run in g.runs if run.method is not None] or [{}]
    return {key: value for key, value in settings[0].items() if all(other.get(key) == value for other in settings)}


def _renamed(found: Group, names: Mapping[Path, str]) -> Group:
    paths = (path.resolve() for run in found.runs for path in run.paths)
    return replace(found, name=next((names[path] for path in paths if path in names), found.name))
