"""The tables of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignkit import Estimate
from alignkit.display.headline import TITLES, Line, headline, number, signed, with_interval

from alignkit_eval.comparison.result import Arm, Comparison, ContrastResult
from alignkit_eval.comparison.verdict import p_text
from alignkit_eval.report.parts import SortableTable, TableCell, amount_cell, fact_text, number_cell


def before_and_after(record: Mapping[str, Any]) -> SortableTable:
    """Return every metric before and after training, from run.json."""
    found = record.get("evaluation", {})
    rows = [
        (
            TableCell(line.title),
            _estimate(line.before),
            _estimate(line.after),
            TableCell("-") if line.change is None else TableCell(signed(line.change), line.change),
        )
        for line in _lines(found.get("before", {}), found.get("after", {}))
    ]
    return SortableTable(
        "Before and after training", ("metric", "before", "after", "change"), rows, "With 95 % intervals."
    )


def _lines(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Line]:
    """Yield the main metrics, then all others of the built-in suites."""
    yield from headline(before, after)
    for suite in dict.fromkeys(suite for suite, _ in TITLES):
        for name in after.get(suite, {}):
            if (suite, name) not in TITLES:
                # headline() shows the metrics of an unknown suite under their own names.
                was, now = ({"": {k: v for k, v in m.get(suite, {}).items() if k == name}} for m in (before, after))
                yield from headline(was, now)


def arms(comparison: Comparison) -> SortableTable:
    """Return the main metrics of every arm."""
    lines = [headline({}, arm.metrics) for arm in comparison.arms]
    titles = list(dict.fromkeys(line.title for found in lines for line in found))
    rows = []
    for arm, found in zip(comparison.arms, lines, strict=True):
        cells = {line.title: _estimate(line.after) for line in found}
        rows.append([TableCell(arm.name), _seeds(arm), *(cells.get(title, TableCell("-")) for title in titles)])
    return SortableTable("Arms", ("arm", "seeds", *titles), rows, "Means over seeds with 95 % intervals.")


def contrasts(comparison: Comparison) -> SortableTable:
    """Return every difference from the baseline, with its uncertainty."""
    columns = ("arm", "metric", "difference", "95 % interval", "p", "detectable", "items in clusters", "verdict")
    note = (
        f"Each arm minus {comparison.baseline}, paired on the same items; p after Holm's correction; detectable: the minimum "
        "detectable difference (80 % power)."
    )
    rows = [_contrast(contrast) for contrast in comparison.contrasts]
    return SortableTable(f"Differences from {comparison.baseline}", columns, rows, note)


def _contrast(c: ContrastResult) -> tuple[TableCell, ...]:
    interval = "-" if c.low is None or c.high is None else f"{signed(c.low)} .. {signed(c.high)}"
    return (
        TableCell(c.arm),
        TableCell(TITLES.get((c.suite, c.metric), c.metric)),
        TableCell(signed(c.diff), c.diff, c.better),
        TableCell(interval, c.low),
        TableCell("-") if c.p_holm is None else TableCell(p_text(c.p_holm), c.p_holm),
        TableCell("-") if c.detectable is None else TableCell(number(c.detectable), c.detectable),
        TableCell(f"{c.n:,} in {c.clusters:,}", float(c.n)),
        TableCell("better" if c.better else "worse" if c.better is False else "no significant difference"),
    )


def costs(comparison: Comparison) -> SortableTable:
    """Return the training cost of every arm."""
    rows = [
        (
            TableCell(arm.name),
            _seeds(arm),
            amount_cell(arm.cost.tokens),
            amount_cell(None if arm.cost.flops is None else arm.cost.flops / 1e12),
            amount_cell(arm.cost.seconds),
            amount_cell(arm.cost.memory_gb),
        )
        for arm in comparison.arms
    ]
    columns = ("arm", "seeds", "tokens", "TFLOP", "seconds", "memory (GiB)")
    note = "Means over seeds, including reference passes and the runs that trained an arm's start model."
    return SortableTable("Cost of training", columns, rows, note)


def times(records: Sequence[tuple[str, Mapping[str, Any]]]) -> SortableTable:
    """Return the duration of each stage of each run, given as (name, run.json)."""
    stages = list(dict.fromkeys(stage for _, record in records for stage in record.get("timings", {})))
    rows = [
        [
            TableCell(name),
            *(number_cell(record.get("timings", {}).get(stage, {}).get("seconds"), ".2f") for stage in stages),
            number_cell(record.get("seconds"), ".1f"),
        ]
        for name, record in records
    ]
    return SortableTable("Time by stage (seconds)", ("run", *stages, "total"), rows)


def cells(entries: Sequence[Mapping[str, Any]]) -> SortableTable:
    """Return the outcome of every cell of a sweep, from sweep.json."""
    rows = [
        (
            TableCell(entry["name"]),
            TableCell(entry["status"]),
            number_cell(entry.get("seconds"), ".1f"),
            number_cell(entry.get("cpu_seconds"), ".1f"),
            TableCell(fact_text(entry.get("error"))),
        )
        for entry in entries
    ]
    return SortableTable("Cells", ("cell", "status", "seconds", "CPU seconds", "error"), rows)


def stages(entries: Sequence[Mapping[str, Any]]) -> SortableTable:
    """Return the outcome of every stage of a pipeline, from pipeline.json."""
    rows = [
        (
            TableCell(entry["name"]),
            TableCell(entry["kind"]),
            TableCell(entry["status"]),
            number_cell(entry["seconds"], ".1f"),
            number_cell(entry["cpu_seconds"], ".1f"),
            TableCell(fact_text(entry["error"])),
        )
        for entry in entries
    ]
    return SortableTable("Stages", ("stage", "kind", "status", "seconds", "CPU seconds", "error"), rows)


def _seeds(arm: Arm) -> TableCell:
    trained = "method" in arm.settings  # a model that was only evaluated has no seed
    return TableCell(", ".join(map(str, arm.seeds)), float(len(arm.seeds))) if trained else TableCell("-")


def _estimate(estimate: Estimate | None) -> TableCell:
    return TableCell("-") if estimate is None else TableCell(with_interval(estimate), estimate.value)
