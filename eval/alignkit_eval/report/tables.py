"""The tables of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignkit import Estimate
from alignkit.rundir.record import stored_estimate

from alignkit_eval.comparison.result import Arm, Comparison, ContrastResult
from alignkit_eval.comparison.verdict import p_text, why_not_significant
from alignkit_eval.glossary import meaning
from alignkit_eval.headline import TITLES, Line, headline, number, signed, with_interval
from alignkit_eval.report.parts import SortableTable, TableCell, amount_cell, fact_text, number_cell

_ARMS_NOTE = (
    "Means over seeds with 95 % intervals over items and seeds: accuracies and other bounded scores by Wilson at the effective "
    "sample size (beta-binomial below 300), other statistics than means by the bootstrap, others by t, all over clusters."
)


def before_and_after(record: Mapping[str, Any]) -> SortableTable:
    """Return every metric before and after training, from run.json."""
    evaluation = record.get("evaluation", {})
    rows = [
        (
            _metric_cell(line.suite, line.metric),
            _estimate_cell(line.before),
            _estimate_cell(line.after),
            TableCell(signed(line.change), line.change),
        )
        for line in _lines(evaluation.get("before", {}), evaluation.get("after", {}))
    ]
    columns = ("metric", "before", "after", "change")
    return SortableTable("Before and after training", columns, rows, "With 95 % intervals.")


def _lines(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Line]:
    """Yield the main metrics, then all others of the built-in suites."""
    yield from headline(before, after)
    for suite in dict.fromkeys(suite for suite, _ in TITLES):
        for name in after.get(suite, {}):
            if (suite, name) not in TITLES:
                first, last = (stored_estimate(metrics.get(suite, {}).get(name)) for metrics in (before, after))
                yield Line(name, first, last, suite, name)


def arms(comparison: Comparison) -> SortableTable:
    """Return the main metrics of every arm."""
    values = [{line.title: line.after for line in headline({}, arm.metrics)} for arm in comparison.arms]
    titles = list(dict.fromkeys(title for found in values for title in found))
    rows = [
        [TableCell(arm.name), _seeds_cell(arm), *(_estimate_cell(found.get(title)) for title in titles)]
        for arm, found in zip(comparison.arms, values, strict=True)
    ]
    return SortableTable("Arms", ("arm", "seeds", *titles), rows, _ARMS_NOTE)


def contrasts(comparison: Comparison) -> SortableTable:
    """Return every difference from the baseline, with its uncertainty."""
    columns = ("arm", "metric", "difference", "95 % interval", "p", "detectable", "items in clusters", "verdict")
    known = {TITLES.get((c.suite, c.metric), c.metric): c.margin for c in comparison.contrasts if c.margin is not None}
    margins = f" ({', '.join(f'{title} {margin:g}' for title, margin in known.items())})" if known else ""
    note = (
        f"{_question(comparison.contrasts)}Each arm minus {comparison.baseline}, paired on the same items; "
        f"{_tests(comparison.contrasts)}; p after Holm's correction; detectable: the minimum detectable difference (80 % power) "
        f"after it; equivalent: both one-sided tests, by the same test, show less than the margin{margins}."
    )
    note = " ".join([note, *why_not_significant(comparison.contrasts)])
    rows = [_contrast(contrast) for contrast in comparison.contrasts]
    return SortableTable(f"Differences from {comparison.baseline}", columns, rows, note)


def of_models(comparison: Comparison) -> SortableTable | None:
    """Return the differences between the trained models, their seeds fixed; None where no arm has several seeds."""
    found = [c for c in comparison.contrasts if c.models]
    if not found:
        return None
    columns = ("arm", "metric", "difference", "95 % interval", "p", "detectable", "seeds needed", "verdict")
    rows = []
    for c in found:
        arm, metric, difference, interval, p, detectable, _, verdict = _contrast(c.models or c)
        needed = TableCell("-" if c.seeds_needed is None else f"{c.seeds_needed}", c.seeds_needed)
        rows.append((arm, metric, difference, interval, p, detectable, needed, verdict))
    note = (
        "Question: these trained models, their seeds fixed and the items a sample; "
        f"{_tests([c.models for c in found if c.models])}; p after Holm's correction. Seeds needed: with so many, a difference of "
        "this size would be shown about the method (80 % power); none is given above 100, or where it takes more items."
    )
    return SortableTable("Differences between the trained models", columns, rows, note)


def _question(contrasts: Sequence[ContrastResult]) -> str:
    several = any(c.models for c in contrasts)
    return "Question: the method, with seeds and items as samples. " if several else ""


def _tests(contrasts: Sequence[ContrastResult]) -> str:
    """Return the tests of a table's contrasts."""
    names = dict.fromkeys(c.test for c in contrasts)
    return f"test: {', '.join(names)}"


def _contrast(c: ContrastResult) -> tuple[TableCell, ...]:
    interval = "-" if c.low is None or c.high is None else f"{signed(c.low)} .. {signed(c.high)}"
    return (
        TableCell(c.arm),
        _metric_cell(c.suite, c.metric),
        TableCell(signed(c.diff), c.diff, c.better),
        TableCell(interval, c.low),
        TableCell("-" if c.p_holm is None else p_text(c.p_holm), c.p_holm),
        TableCell("none" if not c.reachable else "-" if c.detectable is None else number(c.detectable), c.detectable),
        TableCell(f"{c.n:,} in {c.clusters:,}", float(c.n)),
        TableCell(c.outcome),
    )


def pairs(comparison: Comparison) -> SortableTable:
    """Return the deciding differences of any two arms."""
    columns = ("arm", "minus", "metric", "difference", "95 % interval", "p", "verdict")
    rows = [(first, TableCell(c.baseline), *rest) for c in comparison.pairs for first, *rest in [_pair(c)]]
    note = "Any two arms, paired on the same items; p after Holm's correction over all of them."
    note = " ".join([note, *why_not_significant(comparison.pairs)])
    return SortableTable("All pairs", columns, rows, note)


def _pair(c: ContrastResult) -> list[TableCell]:
    arm, metric, difference, interval, p, *_, verdict = _contrast(c)
    return [arm, metric, difference, interval, p, verdict]


def costs(comparison: Comparison) -> SortableTable:
    """Return the training cost of every arm."""
    rows = []
    for arm in comparison.arms:
        teraflops = None if arm.cost.flops is None else arm.cost.flops / 1e12
        amounts = (arm.cost.tokens, teraflops, arm.cost.seconds, arm.cost.memory_gb)
        rows.append([TableCell(arm.name), _seeds_cell(arm), *map(amount_cell, amounts)])
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


def outcomes(title: str, columns: Mapping[str, str], records: Sequence[Any]) -> SortableTable:
    """Return the columns (title -> attribute), duration and error of every cell of a sweep or stage of a pipeline."""
    rows = [
        [
            *(TableCell(getattr(record, attribute)) for attribute in columns.values()),
            number_cell(record.seconds, ".1f"),
            number_cell(record.cpu_seconds, ".1f"),
            TableCell(fact_text(record.error)),
        ]
        for record in records
    ]
    return SortableTable(title, (*columns, "seconds", "CPU seconds", "error"), rows)


def _metric_cell(suite: str, metric: str) -> TableCell:
    return TableCell(TITLES.get((suite, metric), metric), hint=meaning(suite, metric))


def _seeds_cell(arm: Arm) -> TableCell:
    trained = "method" in arm.settings  # a model that was only evaluated has no seed
    count = len(arm.seeds)
    return TableCell(f"{count} seed{'s' * (count > 1)}", float(count)) if trained else TableCell("-")


def _estimate_cell(estimate: Estimate | None) -> TableCell:
    return TableCell(with_interval(estimate), None if estimate is None else estimate.value)
