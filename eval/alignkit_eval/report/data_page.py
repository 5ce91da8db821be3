"""The page of ``align data check``: what was found, and how long prompts and answers are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from alignkit.display.plots import COLOURS
from alignkit.system.files import write_text

from alignkit_eval.report.figures import picture
from alignkit_eval.report.parts import Figure, Figures, Page, Section, SortableTable, TableCell, number_cell
from alignkit_eval.report.render import render

if TYPE_CHECKING:
    from alignkit.data.checking import Check


def data_report(checks: Sequence[Check], path: Path) -> Path:
    """Write what was found in some sources as one page and return its path."""
    found = sum(len(check.findings) for check in checks)
    rows = sum(check.rows for check in checks)
    verdict = (
        f"{found} kinds of trouble were found in {rows:,} rows."
        if found
        else f"Nothing wrong was found in {rows:,} rows."
    )
    notes = [note for check in checks for note in _notes(check)]
    sections = [section for check in checks for section in _sections(check, len(checks) > 1)]
    write_text(path, render(Page("Data check", ", ".join(check.source for check in checks), verdict, notes, sections)))
    return path


def _notes(check: Check) -> Iterator[str]:
    if check.length:
        yield (
            f"{check.source}: the chosen answer is longer in {check.length['chosen_longer']:.0%} of the pairs; always preferring "
            f"the longer one would be right in {check.length['longer_is_better']:.0%}."
        )


def _sections(check: Check, several: bool) -> Iterator[Section]:
    name = f" in {check.source}" if several else ""
    yield SortableTable(
        f"What was found{name}",
        ("rule", "what", "rows", "share", "a cleaned copy"),
        [
            (
                TableCell(finding.rule),
                TableCell(finding.title),
                number_cell(finding.count, ",d"),
                number_cell(finding.rate, ".1%"),
                TableCell("leaves them out" if finding.drops else "keeps them"),
            )
            for finding in check.findings
        ],
    )
    yield SortableTable(
        f"Examples{name}",
        ("rule", "where", "row", "what"),
        [
            (
                TableCell(finding.rule),
                TableCell(example["place"]),
                TableCell(example["row"]),
                TableCell(example["about"]),
            )
            for finding in check.findings
            for example in finding.examples
        ],
        "Of every rule the first few rows.",
    )
    if check.tokens:
        yield SortableTable(
            f"Tokens{name}",
            ("what", "how many"),
            [(TableCell(key.replace("_", " ")), number_cell(value, ",d")) for key, value in check.tokens.items()],
            f"As training with data.max_length {check.max_length:,} would have it.",
        )
    figures = list(_figures(check))
    if figures:
        yield Figures(f"Lengths{name}", figures)


def _figures(check: Check) -> Iterator[Figure]:
    words = {name: values for name, values in check.words.items() if len(values)}
    if words:
        yield _histogram("Words", words, "words")
    if {"chosen", "rejected"} <= words.keys():
        difference = np.subtract(words["chosen"], words["rejected"])
        yield _histogram("Chosen less rejected", {"difference": difference.tolist()}, "words", middle=0.0)
    if len(check.token_lengths):
        yield _histogram(
            "Tokens of a row", {"prompt and longest answer": check.token_lengths}, "tokens", middle=check.max_length
        )


def _histogram(title: str, values: Mapping[str, Sequence[int]], unit: str, middle: float | None = None) -> Figure:
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(5, 3.2), layout="constrained")
    axes = drawing.subplots()
    everything = np.concatenate([np.asarray(part) for part in values.values()])
    low, high = np.quantile(everything, [0.0 if middle is None else 0.005, 0.995])
    borders: list[float] = np.linspace(low, max(high, low + 1), 41).tolist()
    for (name, part), colour in zip(values.items(), COLOURS, strict=False):
        axes.hist(np.clip(part, low, high), borders, histtype="step", linewidth=1.6, color=colour, label=name)
    if middle is not None and low <= middle <= high:
        axes.axvline(middle, color="#555555", linewidth=1, linestyle="--")
    axes.set_title(title)
    axes.set_xlabel(f"{unit} (the outer bars hold what lies beyond)" if high < everything.max() else unit)
    axes.set_ylabel("rows")
    axes.spines[["top", "right"]].set_visible(False)
    if len(values) > 1:
        axes.legend(frameon=False)
    said = "; ".join(
        f"{name}: median {np.median(part):.0f}, 95 % below {np.quantile(part, 0.95):.0f}"
        for name, part in values.items()
    )
    return picture(f"{title}, {unit}. {said}.", drawing)
