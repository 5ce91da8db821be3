"""Ranking of arms that were evaluated on the same items: groups that cannot be told apart, and quality against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from alignkit import Contrast, Estimate
from alignkit.errors import ConfigError, suggest
from alignkit.rundir.directory import RunDir
from alignkit.system.files import digest, to_json

from alignkit_eval.comparison.arms import Group, RunResult, group, lineage, mean_cost
from alignkit_eval.comparison.items import Values, item_values, paired_seeds, shared_items
from alignkit_eval.comparison.letters import letters_of
from alignkit_eval.comparison.paired import estimate_over_seeds, holm, judge, minus
from alignkit_eval.comparison.result import ContrastResult
from alignkit_eval.comparison.verdict import Judged
from alignkit_eval.leaderboard.find import Apart, Filter, runs_below
from alignkit_eval.statistics import transformed

COSTS = {"tokens": "tokens", "cpu_seconds": "CPU seconds", "memory_gb": "memory (GiB)"}
"""Costs of training an arm, with the runs that trained its start model, and their titles."""


@dataclass(frozen=True)
class Entry:
    """An arm of a board: runs that differ only in their seed."""

    name: str
    runs: tuple[Path, ...]
    seeds: tuple[int, ...]
    value: Estimate
    """The metric, mean over seeds."""
    letters: str
    """Arms of a board that share a letter cannot be told apart by the metric."""
    cost: Mapping[str, float | None]
    """Means over seeds, by the names of :data:`COSTS`."""
    front: tuple[str, ...]
    """Costs by which no other arm is as good and as cheap, and better in one of both."""


@dataclass(frozen=True)
class Board:
    """Arms ranked by one metric on the same items."""

    suite: str
    metric: str
    higher_is_better: bool
    items: int
    clusters: int
    entries: tuple[Entry, ...]
    reason: str = ""
    """Why it is not part of the first board; empty for that one."""


@dataclass(frozen=True)
class Leaderboard:
    """All boards of a directory, the one with the most runs first, and the runs that are on none."""

    directory: Path
    metric: str
    boards: tuple[Board, ...]
    apart: tuple[Apart, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the output of ``align leaderboard --json`` as plain JSON types."""
        return {key: to_json(value) for key, value in vars(self).items()}


def leaderboard(
    directory: Path, metric: str | None = None, where: Sequence[str] = (), sort: str = "quality"
) -> Leaderboard:
    """Rank the runs below a directory; only those that were evaluated on the same items are ranked together.

    Args:
        directory: where to look for runs and evaluations.
        metric: ``METRIC`` or ``SUITE/METRIC`` to rank by (default: the first deciding one of most runs).
        where: filters, ``KEY=VALUE,...``; a run must pass all of them.
        sort: ``quality``, ``name`` or a name of :data:`COSTS`.

    Raises:
        ConfigError: there is no run, or none with that metric, or a filter or ``sort`` is unknown.
    """
    if sort not in ("quality", "name", *COSTS):
        raise ConfigError(f"--sort {sort}: sort by quality, name, {', '.join(COSTS)}")
    runs, apart = runs_below(directory)
    filters = [Filter(text) for text in where]
    for each in filters:
        each.require(runs)
    runs = [run for run in runs if all(each.keeps(run) for each in filters)]
    if not runs:
        why = f": {apart[0].path} {apart[0].reason}" if apart and not where else ", or the filters leave none"
        raise ConfigError(f"no run below {directory} can be ranked{why}")
    known = [c.metric for run in runs for result in run.results.values() for c in result.contrasts if c.numerator]
    metric = metric or _default(runs)
    parts: dict[str, list[tuple[RunResult, str, Contrast]]] = {}
    for run in runs:
        if (found := _measured(run, metric)) is None:
            apart.append(Apart(run.path, f"was not evaluated by {metric}"))
        else:
            parts.setdefault(_items_key(run, *found), []).append((run, *found))
    if not parts:
        raise ConfigError(
            f"--metric {metric}: no run has it{suggest(metric, known)} (there are {', '.join(dict.fromkeys(known)) or 'none'})"
        )
    boards: list[Board] = []
    ordered = sorted(parts.values(), key=len, reverse=True)
    for part in ordered:
        made = _board([run for run, _, _ in part], part[0][1], part[0][2], sort, apart)
        if made is not None:
            reason = _difference(part[0], ordered[0][0]) if boards else ""
            boards.append(replace(made, reason=reason))
    return Leaderboard(directory, metric, tuple(boards), tuple(apart))


def _default(runs: Sequence[RunResult]) -> str:
    """Return the deciding metric that most runs have, the first one of their suites where several do."""
    deciding = [c.metric for run in runs for result in run.results.values() for c in result.contrasts if c.verdict]
    every = deciding or [c.metric for run in runs for r in run.results.values() for c in r.contrasts if c.numerator]
    if not every:
        raise ConfigError(f"{runs[0].path} and the others have no metric that can be compared")
    return max(dict.fromkeys(every), key=every.count)


def _measured(run: RunResult, metric: str) -> tuple[str, Contrast] | None:
    """Return the suite and the contrast of a metric in a run."""
    for suite, result in run.results.items():
        for contrast in result.contrasts:
            if contrast.numerator and metric in (contrast.metric, f"{suite}/{contrast.metric}"):
                return suite, contrast
    return None


def _items_key(run: RunResult, suite: str, contrast: Contrast) -> str:
    """Return what two runs must share to be ranked together: settings, texts, items and clusters of the suite."""
    result = run.results[suite]
    tokenizer = result.provenance.get("tokenizer") if contrast.one_tokenizer else None
    items = sorted((str(item["id"]), str(item["cluster"])) for item in result.items)
    return digest(to_json([suite, result.settings, result.provenance.get("content"), items, tokenizer]))


def _difference(part: tuple[RunResult, str, Contrast], first: tuple[RunResult, str, Contrast]) -> str:
    """Return why runs are not ranked with those of the first board."""
    (run, suite, _), (other, other_suite, _) = part, first
    mine, theirs = run.results[suite], other.results[other_suite]
    if suite != other_suite:
        return f"evaluated by suite {suite}, not {other_suite}"
    if mine.settings != theirs.settings:
        return f"evaluated with other settings of suite {suite} than {other.path}"
    ids, their_ids = ({str(item["id"]) for item in result.items} for result in (mine, theirs))
    if ids != their_ids:
        return f"evaluated on other items than {other.path}: {len(ids - their_ids):,} only here, {len(their_ids - ids):,} only there"
    if mine.provenance.get("content") != theirs.provenance.get("content"):
        return f"evaluated on other texts than {other.path}, with the same ids"
    return f"{run.path} and {other.path} have different tokenizers or clusters of items"


def _board(runs: Sequence[RunResult], suite: str, contrast: Contrast, sort: str, apart: list[Apart]) -> Board | None:
    """Rank runs on the same items; those with an item without a number go to ``apart``."""
    values: dict[str, tuple[Group, Values]] = {}
    for found in group(runs):
        try:
            values[found.name] = found, item_values(found, suite, contrast, shared_items(suite, [found]))
        except ConfigError as error:
            apart += [Apart(run.path, str(error)) for run in found.runs]
    if not values:
        return None
    sign = -1.0 if contrast.higher_is_better else 1.0
    ranked = sorted(values, key=lambda name: (sign * float(values[name][1].effect.seeds.mean()), name))
    letters = letters_of(ranked, _pairs(values, suite, contrast)) or dict.fromkeys(values, "a")
    entries = [_entry(*values[name], contrast, letters[name]) for name in ranked]
    fronts = {cost: _front(entries, cost, sign) for cost in COSTS}
    entries = [
        Entry(**{**vars(entry), "front": tuple(cost for cost in COSTS if entry.name in fronts[cost])})
        for entry in entries
    ]
    if sort == "name":
        entries.sort(key=lambda entry: entry.name)
    elif sort != "quality":
        entries.sort(key=lambda entry: math.inf if (cost := entry.cost[sort]) is None else cost)
    clusters = next(iter(values.values()))[1].clusters
    return Board(suite, contrast.metric, contrast.higher_is_better, len(clusters), len(set(clusters)), tuple(entries))


def _pairs(values: Mapping[str, tuple[Group, Values]], suite: str, contrast: Contrast) -> list[Judged]:
    """Return the difference of any two arms, with p corrected over all of them."""
    found = []
    for (name, (_, mine)), (base, (_, theirs)) in combinations(values.items(), 2):
        rows, base_rows = paired_seeds(mine.seeds, theirs.seeds)
        difference = judge(minus(mine.effect.at(rows), theirs.effect.at(base_rows)), mine.clusters)
        found.append((name, base, difference))
    corrected = holm([difference.p for _, _, difference in found])
    return [
        Judged(
            base,
            ContrastResult(
                arm=name,
                suite=suite,
                metric=contrast.metric,
                p_holm=p,
                higher_is_better=contrast.higher_is_better,
                baseline=base,
                **{**difference._asdict(), "models": None},
            ),
        )
        for (name, base, difference), p in zip(found, corrected, strict=True)
    ]


def _entry(found: Group, values: Values, contrast: Contrast, letters: str) -> Entry:
    value = Estimate(*estimate_over_seeds(values.effect, values.clusters, contrast.bounds))
    value = transformed(value, math.exp) if contrast.log else value
    cost = mean_cost(found.runs)
    costs = {"tokens": cost.tokens, "cpu_seconds": _cpu_seconds(found.runs), "memory_gb": cost.memory_gb}
    paths, seeds = (tuple(getattr(run, key) for run in found.runs) for key in ("path", "seed"))
    return Entry(found.name, paths, seeds, value, letters, costs, ())


def _cpu_seconds(runs: Sequence[RunResult]) -> float | None:
    """Return the mean CPU seconds of training and of reference passes, with the runs that trained the start model."""
    totals = []
    for run in runs:
        records = [past.record for path in run.paths for past in lineage(RunDir(path).read_record())]
        stages = [record.get("timings", {}).get("train", {}).get("cpu_seconds") for record in records]
        if run.method is None or None in stages:
            return None
        totals.append(sum(stages) + sum(r["timings"].get("reference", {}).get("cpu_seconds", 0.0) for r in records))
    return float(sum(totals)) / len(totals)


def _front(entries: Sequence[Entry], cost: str, sign: float) -> set[str]:
    """Return the arms such that no other one is as good and as cheap, and better in one of both."""
    points = {e.name: (sign * e.value.value, price) for e in entries if (price := e.cost[cost]) is not None}
    return {
        name
        for name, (quality, price) in points.items()
        if not any(q <= quality and p <= price and (q, p) != (quality, price) for q, p in points.values())
    }
