"""The tables of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignkit import Estimate
from alignkit.display.headline import TITLES, Line, headline, number, signed, with_interval

from alignkit_eval.comparison.result import Comparison, ContrastResult
from alignkit_eval.comparison.verdict import p_text
from alignkit_eval.report.parts import Cell, Table, number_cell, plain


def before_and_after(record: Mapping[str, Any]) -> Table:
    """Return every metric before and after training, from run.json."""
    found = record.get("evaluation", {})
    rows = [
        (
            Cell(line.title),
            _estimate(line.before),
            _estimate(line.after),
            Cell("-") if line.change is None else Cell(signed(line.change), line.change),
        )
        for line in _lines(found.get("before", {}), found.get("after", {}))
    ]
    return Table("Before and after training", ("metric", "before", "after", "change"), rows, "With 95 % intervals.")


def _lines(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Line]:
    """Yield the main metrics, then all others of the built-in suites."""
    yield from headline(before, after)
    for suite in dict.fromkeys(suite for suite, _ in TITLES):
        for name in after.get(suite, {}):
            if (suite, name) not in TITLES:
                # As metrics of a suite without main ones, each is shown under its own name.
                was, now = ({"": {k: v for k, v in m.get(suite, {}).items() if k == name}} for m in (before, after))
                yield from headline(was, now)


def arms(comparison: Comparison) -> Table:
    """Return the main metrics of every arm."""
    lines = [headline({}, arm.metrics) for arm in comparison.arms]
    titles = list(dict.fromkeys(line.title for found in lines for line in found))
    rows = []
    for arm, found in zip(comparison.arms, lines, strict=True):
        cells = {line.title: _estimate(line.after) for line in found}
        trained = "method" in arm.settings  # a model that was evaluated on its own has no seed
        seeds = Cell(", ".join(map(str, arm.seeds)), float(len(arm.seeds))) if trained else Cell("-")
        rows.append([Cell(arm.name), seeds, *(cells.get(title, Cell("-")) for title in titles)])
    return Table("Arms", ("arm", "seeds", *titles), rows, "Means over seeds with 95 % intervals.")


def contrasts(comparison: Comparison) -> Table:
    """Return every difference to the baseline, with how sure it is."""
    columns = ("arm", "metric", "difference", "95 % interval", "p (Holm)", "detectable", "items in clusters", "verdict")
    note = (
        f"Each arm less {comparison.baseline}, paired on the same items. Detectable is the smallest difference that would "
        "be found four times in five."
    )
    rows = [_contrast(contrast) for contrast in comparison.contrasts]
    return Table(f"Differences to {comparison.baseline}", columns, rows, note)


def _contrast(c: ContrastResult) -> tuple[Cell, ...]:
    interval = "-" if c.low is None or c.high is None else f"{signed(c.low)} .. {signed(c.high)}"
    return (
        Cell(c.arm),
        Cell(TITLES.get((c.suite, c.metric), c.metric)),
        Cell(signed(c.diff), c.diff),
        Cell(interval, c.low),
        Cell("-") if c.p_holm is None else Cell(p_text(c.p_holm), c.p_holm),
        Cell("-") if c.detectable is None else Cell(number(c.detectable), c.detectable),
        Cell(f"{c.n:,} in {c.clusters:,}", float(c.n)),
        Cell("better" if c.better else "worse" if c.better is False else "cannot be told apart"),
    )


def costs(comparison: Comparison) -> Table:
    """Return what every arm cost to train."""
    rows = [
        (
            Cell(arm.name),
            number_cell(arm.cost.tokens, ",.0f"),
            number_cell(None if arm.cost.flops is None else arm.cost.flops / 1e12, ",.3g"),
            number_cell(arm.cost.seconds, ",.1f"),
            number_cell(arm.cost.memory_gb, ".2f"),
        )
        for arm in comparison.arms
    ]
    note = "A mean over seeds; the runs an arm's start model came from, and reference passes, are charged as well."
    return Table("Cost of training", ("arm", "tokens", "TFLOP", "seconds", "memory (GiB)"), rows, note)


def times(records: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """Return how long each stage of each run took, by name and run.json."""
    stages = list(dict.fromkeys(stage for _, record in records for stage in record.get("timings", {})))
    rows = [
        [
            Cell(name),
            *(number_cell(record.get("timings", {}).get(stage, {}).get("seconds"), ".2f") for stage in stages),
            number_cell(record.get("seconds"), ".1f"),
        ]
        for name, record in records
    ]
    return Table("Where the time went, in seconds", ("run", *stages, "all"), rows)


def cells(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Return how every cell of a sweep ended, from sweep.json."""
    rows = [
        (
            Cell(entry["name"]),
            Cell(entry["status"]),
            number_cell(entry.get("seconds"), ".1f"),
            number_cell(entry.get("cpu_seconds"), ".1f"),
            Cell(plain(entry.get("error"))),
        )
        for entry in entries
    ]
    return Table("Cells", ("cell", "status", "seconds", "CPU seconds", "error"), rows)


def stages(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Return how every stage of a pipeline ended, from pipeline.json."""
    rows = [
        (
            Cell(entry["name"]),
            Cell(entry["kind"]),
            Cell(entry["status"]),
            number_cell(entry["seconds"], ".1f"),
            number_cell(entry["cpu_seconds"], ".1f"),
            Cell(plain(entry["error"])),
        )
        for entry in entries
    ]
    return Table("Stages", ("stage", "kind", "status", "seconds", "CPU seconds", "error"), rows)


def _estimate(estimate: Estimate | None) -> Cell:
    return Cell("-") if estimate is None else Cell(with_interval(estimate), estimate.value)
