"""The suites, contrasts and items that all runs share, and the values of the items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from alignkit import Contrast, SuiteResult
from alignkit.errors import ConfigError
from numpy.typing import ArrayLike

from alignkit_eval.comparison.arms import Group, RunResult, grouped
from alignkit_eval.statistics import Effect, Floats, effect

_FEW = 10
"""Most values of a score that is treated as one with few values."""


class Values(NamedTuple):
    """Values of one contrast in one group, with the seeds ``[K]`` and the cluster of each item ``[n]``."""

    seeds: tuple[int, ...]
    effect: Effect
    clusters: list[str]
    distinct: tuple[float, ...] = ()
    """The values of a score that has few, else empty."""
    draws: Floats | None = None
    """For a statistic that is not a mean: its values on bootstrap draws, ``[K, B]``; the effect's influence is then zero."""
    is_share: bool = False
    """Whether it is a mean over items of values that all lie in [0, 1]."""


def bounded(contrast: Contrast, values: Iterable[Values]) -> Contrast:
    """Return a contrast whose score has no known bounds with those of a share, if it is one in all groups: one interval for all."""
    unknown = contrast.bounds == (None, None)
    return replace(contrast, bounds=(0, 1)) if unknown and all(found.is_share for found in values) else contrast


def common_suites(groups: Sequence[Group], notes: list[str]) -> list[str]:
    """Return the suites that every run was evaluated with under the same settings, those that decide the verdict first.

    A suite that is left out is added to ``notes``.

    Raises:
        ConfigError: no suite is left.
    """
    runs = [run for g in groups for run in g.runs]
    everywhere = [name for name in runs[0].results if all(name in run.results for run in runs)]
    comparable, left_out = [], []
    for name in sorted({name for run in runs for name in run.results} - set(everywhere)):
        missing = next(run for run in runs if name not in run.results)
        left_out.append(f"suite {name} is left out: {missing.path} has no result for it")
    for name in everywhere:
        odd = next((run for run in runs if run.results[name].settings != runs[0].results[name].settings), None)
        if odd is None:
            comparable.append(name)
        else:
            theirs, ours = odd.results[name].settings, runs[0].results[name].settings
            keys = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
            left_out.append(
                f"suite {name} is left out: {odd.path} and {runs[0].path} were evaluated with different settings "
                f"({', '.join(keys)})"
            )
    if not comparable:
        raise ConfigError(
            f"the runs have no suite in common; evaluate them all with the same align eval command: {'; '.join(left_out)}"
        )
    notes += left_out
    return sorted(comparable, key=lambda name: not any(c.verdict for c in runs[0].results[name].contrasts))


def common_contrasts(suite: str, groups: Sequence[Group], notes: list[str]) -> list[Contrast]:
    """Return the contrasts that all runs of all groups share; those that are left out are added to ``notes``."""
    runs = [run for g in groups for run in g.runs]
    results = [run.results[suite] for run in runs]
    one_tokenizer = len({result.provenance.get("tokenizer") for result in results}) == 1
    common = []
    declared = dict.fromkeys(contrast.metric for result in results for contrast in result.contrasts)
    for metric in declared:
        found = [{c.metric: c for c in result.contrasts}.get(metric) for result in results]
        contrast = found[0]
        if contrast is None or None in found:
            notes.append(f"{metric} is left out: {runs[found.index(None)].path} does not have it")
        elif any(_definition(other) != _definition(contrast) for other in found):
            notes.append(f"{metric} is left out: the runs' results define it differently")
        elif contrast.one_tokenizer and not one_tokenizer:
            notes.append(f"{metric} is left out: the models have different tokenizers")
        elif contrast.against_start and len(_starts(results)) > 1:
            notes.append(
                f"{metric} is left out: the runs started from different models, and it is measured against these"
            )
        elif contrast.numerator == "" and not _same_draws(results, metric):
            notes.append(f"{metric} is left out: the runs' results were not made from the same bootstrap draws")
        elif not any(contrast.counts(item) for item in results[0].items):
            notes.append(f"{metric} is left out: it applies to no item")
        else:
            common.append(contrast)
    names = {contrast.metric for contrast in common}
    # A metric that decides the verdict together with another one does not decide it alone.
    return [c if names.issuperset(c.verdict) else replace(c, verdict=()) for c in common]


def _same_draws(results: Sequence[SuiteResult], metric: str) -> bool:
    """Whether all results have as many draws of the same documents in the same order."""
    orders = [[(item["id"], item["cluster"]) for item in result.items] for result in results]
    counts = {len(result.draws.get(metric, ())) for result in results}
    return len(counts) == 1 and 0 not in counts and all(order == orders[0] for order in orders)


def _definition(contrast: Contrast | None) -> Contrast | None:
    """Return what a contrast measures, without what the comparison makes of it (results of other versions differ there)."""
    return contrast and replace(
        contrast, verdict=(), guard=False, margin=None, against_start=False, bounds=(None, None)
    )


def _starts(results: Sequence[SuiteResult]) -> set[Any]:
    """Return the start models of the results, by their hash, as far as they are known."""
    return {result.provenance.get("start_weights") for result in results} - {None}


def weights_notes(runs: Sequence[RunResult]) -> list[str]:
    """Return a note for every run whose suites were not all evaluated on the same weights and configuration."""
    notes = []
    for run in runs:
        suites: dict[str, list[str]] = {}
        for name, result in run.results.items():
            if result.provenance.get("weights"):
                suites.setdefault(str(result.provenance["weights"]), []).append(name)
        if len(suites) > 1:
            groups = " and ".join(", ".join(names) for names in suites.values())
            notes.append(
                f"{run.path}: {groups} were evaluated on different weights or configurations of this model: evaluate it again "
                "with every suite"
            )
    return notes


def source_notes(runs: Sequence[RunResult]) -> list[str]:
    """Return a note where runs with equal data settings were trained on different rows: a source changed in between."""
    groups = grouped(
        [run for run in runs if run.method is not None],
        lambda run: (
            run.label,
            run.start,
            {k: v for k, v in run.settings.items() if k.startswith(("data.", "model."))},
        ),
    )
    return [
        f"{first.path} and {other.path} were trained on different rows although their settings name the same data: the source "
        "has changed in between"
        for first, *others in groups
        for other in [run for run in others if run.data != first.data][:1]
    ]


def provenance_notes(suite: str, groups: Sequence[Group]) -> list[str]:
    """Return notes on how a suite's results were made, where that differs but does not prevent a comparison."""
    results = [run.results[suite] for g in groups for run in g.runs]

    def differs(key: str) -> bool:
        return any(result.provenance.get(key) != results[0].provenance.get(key) for result in results)

    notes = []
    if differs("rules"):
        notes.append(
            f"suite {suite}: rows were tokenised differently (a maximum length of data, append_eos or columns differ)"
        )
    scored = dict.fromkeys(str(result.provenance.get("scored_by") or "").strip() for result in results)
    if len(types := dict.fromkeys(words.split(" ", 3)[3] for words in scored if words.count(" ") > 2)) > 1:
        notes.append(f"suite {suite}: matrix products had different types ({' and '.join(types)})")
    if differs("plugin"):
        notes.append(f"suite {suite}: the results were made by different versions of its code")
    return notes + _left_out(suite, groups)


def _left_out(suite: str, groups: Sequence[Group]) -> list[str]:
    """Return notes on what was left out or cut, once where it is the same for all runs."""
    found = [(g.name, run.results[suite]) for g in groups for run in g.runs]
    said = [(name, "; ".join([*map(str, result.left_out), *result.notes])) for name, result in found]
    texts = {text for _, text in said}
    if len(texts) == 1:
        return [f"suite {suite}: {text}" for text in texts if text]
    return [f"suite {suite}: {name}: {text or 'nothing was left out or cut'}" for name, text in dict.fromkeys(said)]


def shared_items(suite: str, groups: Sequence[Group]) -> dict[str, str]:
    """Return the cluster of every item of a suite, by id; raises ``ConfigError`` where runs differ in their items."""
    first, *others = (run for g in groups for run in g.runs)
    clusters = _clusters(suite, first)
    for run in others:
        theirs = _clusters(suite, run)
        only_here = [name for name in clusters if name not in theirs]
        only_there = [name for name in theirs if name not in clusters]
        differences = [
            f"{len(names):,} only in {where.path} (first: {names[0]})"
            for names, where in ((only_here, first), (only_there, run))
            if names
        ]
        if differences:
            raise ConfigError(f"suite {suite} was run on different items: {' and '.join(differences)}")
        if run.results[suite].provenance.get("content") != first.results[suite].provenance.get("content"):
            raise ConfigError(
                f"suite {suite} was run on different items: {first.path} and {run.path} have the same ids with different "
                "texts"
            )
        for name, cluster in theirs.items():
            if cluster != clusters[name]:
                raise ConfigError(
                    f"suite {suite}: the item {name!r} has different clusters in {first.path} and {run.path}"
                )
    return clusters


def item_values(g: Group, suite: str, contrast: Contrast, clusters: Mapping[str, str]) -> Values:
    """Return the values of a contrast in one group; raises ``ConfigError`` where an item lacks one."""
    counted = {str(item["id"]) for item in g.runs[0].results[suite].items if contrast.counts(item)}
    names = [name for name in clusters if name in counted]
    if contrast.numerator == "":
        return _drawn(g, suite, contrast, [clusters[name] for name in names])
    numerators, denominators = [], []
    items = [{str(item["id"]): item for item in run.results[suite].items} for run in g.runs]
    if contrast.denominator is not None:  # an item without any share, such as a pair that is not its group's first
        names = [n for n in names if any(of[n].get(contrast.denominator) != 0 for of in items)] or names
    for run, of in zip(g.runs, items, strict=True):
        rows = [of[name] for name in names]
        numerators.append([_number(run, suite, item, contrast.numerator) for item in rows])
        if contrast.denominator is not None:
            denominators.append([_number(run, suite, item, contrast.denominator) for item in rows])
    try:
        found = effect(numerators, denominators or None)
    except ValueError as error:
        raise ConfigError(
            f"suite {suite} of {g.runs[0].path}: {contrast.metric} cannot be compared: {error}"
        ) from error
    few = distinct(numerators, denominators or 1.0)
    is_share = not denominators and bool(np.all((np.array(numerators) >= 0) & (np.array(numerators) <= 1)))
    return Values(tuple(run.seed for run in g.runs), found, [clusters[name] for name in names], few, None, is_share)


def distinct(numerators: ArrayLike, denominators: ArrayLike = 1.0) -> tuple[float, ...]:
    """Return the values of a score that has few of them, else nothing."""
    values = np.unique(numerators) if np.isin(denominators, (0, 1)).all() else np.empty(0)
    return tuple(values.tolist()) if len(values) <= _FEW else ()


def _drawn(g: Group, suite: str, contrast: Contrast, clusters: list[str]) -> Values:
    """Return the values of a statistic that is not a mean, with those on bootstrap draws."""
    results = [run.results[suite] for run in g.runs]
    seeds = np.array([result.metrics[contrast.metric].value for result in results])
    share = np.full(len(clusters), 1 / len(clusters))
    found = Effect(seeds, np.zeros((len(results), len(clusters))), share)
    draws = np.array([result.draws[contrast.metric] for result in results], dtype=np.float64)  # None is NaN
    return Values(tuple(run.seed for run in g.runs), found, clusters, draws=draws)


def paired_seeds(arm: Sequence[int], baseline: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the positions of the seeds of two arms that are paired: those of common seeds, or else in order.

    >>> paired_seeds([0, 1, 2], [2, 0])
    ([0, 2], [1, 0])
    """
    shared = [seed for seed in arm if seed in baseline]
    if shared:
        return [arm.index(seed) for seed in shared], [baseline.index(seed) for seed in shared]
    count = min(len(arm), len(baseline))
    return list(range(count)), list(range(count))


def step_of(*arms: Values) -> float:
    """Return by how much the score of one item changes, for scores with few values: 1 for credits; 0 for other scores."""
    values = sorted({value for arm in arms for value in arm.distinct})
    if not all(arm.distinct for arm in arms) or len(values) > _FEW:
        return 0.0
    gaps = [b - a for a, b in pairwise(values)]
    return 1.0 if {*values} <= {0.0, 0.5, 1.0} else min(gaps, default=0.0)


def _number(run: RunResult, suite: str, item: Mapping[str, Any], key: str) -> float:
    value = item.get(key)
    if not isinstance(value, int | float):  # null: the number was not finite
        raise ConfigError(f"{run.path / 'eval' / suite}.items.jsonl: the item {item['id']!r} has no number {key!r}")
    return float(value)


def _clusters(suite: str, run: RunResult) -> dict[str, str]:
    items = run.results[suite].items
    clusters = {str(item["id"]): str(item["cluster"]) for item in items}
    if len(clusters) < len(items):
        twice = Counter(str(item["id"]) for item in items).most_common(1)[0][0]
        raise ConfigError(
            f"suite {suite} of {run.path} has duplicate ids (first: {twice!r}), so items cannot be paired"
        )
    return clusters
