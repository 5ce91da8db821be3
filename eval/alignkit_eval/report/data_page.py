"""The HTML page of ``align data check``: findings, and the lengths of prompts and answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from alignkit_eval.report.curves import COLOURS
from alignkit_eval.report.parts import EmbeddedFigure, Figures, Page, Section, SortableTable, TableCell, number_cell
from alignkit_eval.report.plots import embed
from alignkit_eval.report.render import write_page


class Finding(Protocol):
    """The rows found by one rule (``alignkit_checks.before_training.Finding``)."""

    rule: str
    title: str
    count: int
    rate: float
    drops: bool
    examples: Sequence[Mapping[str, str]]


class Check(Protocol):
    """What the page shows of one checked source (``alignkit_checks.check.Check``)."""

    source: str
    rows: int
    findings: Sequence[Finding]
    length: Mapping[str, float]
    tokens: Mapping[str, int]
    words: Mapping[str, Sequence[int]]
    token_lengths: Sequence[int]
    max_length: int
    limit: str


def data_report(checks: Sequence[Check], path: Path) -> Path:
    """Write the findings in one or several sources as one page, and return its path."""
    found = sum(len(check.findings) for check in checks)
    rows = sum(check.rows for check in checks)
    verdict = f"{f'{found} kinds of' if found else 'No'} problems were found in {rows:,} rows."
    notes = [
        f"{check.source}: the chosen answer is longer in {check.length['chosen_longer']:.0%} of the pairs; always preferring "
        f"the longer one would have an accuracy of {check.length['longer_is_better']:.0%}."
        for check in checks
        if check.length
    ]
    sections = [section for check in checks for section in _sections(check, len(checks) > 1)]
    sources = ", ".join(check.source for check in checks)
    return write_page(path, Page("Data check", sources, verdict, notes, sections))


def _sections(check: Check, several: bool) -> Iterator[Section]:
    name = f" in {check.source}" if several else ""
    yield SortableTable(
        f"Findings{name}",
        ("rule", "finding", "rows", "share", "--fix"),
        [
            (
                TableCell(finding.rule),
                TableCell(finding.title),
                number_cell(finding.count, ",d"),
                number_cell(finding.rate, ".1%"),
                TableCell("removes the rows" if finding.drops else "keeps the rows"),
            )
            for finding in check.findings
        ],
    )
    yield SortableTable(
        f"Examples{name}",
        ("rule", "location", "row", "finding"),
        [
            [TableCell(text) for text in (finding.rule, example["place"], example["row"], example["about"])]
            for finding in check.findings
            for example in finding.examples
        ],
        "The first rows found by each rule.",
    )
    if check.tokens:
        yield SortableTable(
            f"Tokens{name}",
            ("quantity", "count"),
            [(TableCell(key.replace("_", " ")), number_cell(value, ",d")) for key, value in check.tokens.items()],
            f"As in training, at most {check.max_length:,} tokens a row ({check.limit}).",
        )
    if figures := list(_figures(check)):
        yield Figures(f"Lengths{name}", figures)


def _figures(check: Check) -> Iterator[EmbeddedFigure]:
    words = {name: values for name, values in check.words.items() if len(values)}
    if words:
        yield _histogram("Words", words, "words")
    if {"chosen", "rejected"} <= words.keys():
        difference = np.subtract(words["chosen"], words["rejected"])
        yield _histogram("Chosen minus rejected", {"difference": difference.tolist()}, "words", marker=0.0)
    if len(check.token_lengths):
        yield _histogram(
            "Tokens per row", {"prompt and longest answer": check.token_lengths}, "tokens", marker=check.max_length
        )


def _histogram(
    title: str, values: Mapping[str, Sequence[int]], unit: str, marker: float | None = None
) -> EmbeddedFigure:
    """Return histograms with a vertical line at ``marker``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    everything = np.concatenate([np.asarray(part) for part in values.values()])
    low, high = np.quantile(everything, [0.0 if marker is None else 0.005, 0.995])
    edges: list[float] = np.linspace(low, max(high, low + 1), 41).tolist()
    for (name, part), colour in zip(values.items(), COLOURS, strict=False):
        axes.hist(np.clip(part, low, high), edges, histtype="step", linewidth=1.6, color=colour, label=name)
    if marker is not None and low <= marker <= high:
        axes.axvline(marker, color="#555555", linewidth=1, linestyle="--")
    axes.set_title(title)
    axes.set_xlabel(f"{unit} (outermost bins include values beyond)" if high < everything.max() else unit)
    axes.set_ylabel("rows")
    axes.spines[["top", "right"]].set_visible(False)
    if len(values) > 1:
        axes.legend(frameon=False)
    summary = "; ".join(
        f"{name}: median {np.median(part):.0f}, 95th percentile {np.quantile(part, 0.95):.0f}"
        for name, part in values.items()
    )
    return embed(f"{title}, {unit}. {summary}.", figure)
