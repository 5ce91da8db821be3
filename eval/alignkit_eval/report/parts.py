"""The parts of a report page, as plain data for the templates and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class TableCell(NamedTuple):
    """A cell of a table."""

    text: str
    value: float | None = None
    """Number to sort by (None or not finite: sort by text)."""
    better: bool | None = None
    """Whether it is significantly better (True) or worse (False) than the baseline."""
    hint: str = ""
    """Explanation, shown as a tooltip."""


@dataclass(frozen=True)
class SortableTable:
    """A table with sortable columns; the first column names the row."""

    kind = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    note: str = ""

    @property
    def is_text(self) -> list[bool]:
        """Whether each column holds text (aligned left) rather than numbers."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns)
        return [
            all(cell.value is None for cell in column) and any(cell.text not in ("-", NOT_FINITE) for cell in column)
            for column in columns
        ]


class EmbeddedFigure(NamedTuple):
    """A figure with its alternative text."""

    alt: str
    source: str
    """A ``data:`` URL."""
    ratio: float = 0.6
    """Height over width."""


@dataclass(frozen=True)
class Figures:
    """Figures side by side."""

    kind = "figures"
    title: str
    figures: Sequence[EmbeddedFigure]


class Word(NamedTuple):
    """A piece of text in a comparison of two texts; ``change`` is same, gone or new."""

    change: str
    text: str


class AnswerDiff(NamedTuple):
    """One answer to a prompt, as differences from the first model's."""

    name: str
    words: Sequence[Word]


class Generation(NamedTuple):
    """A prompt and its answers side by side."""

    id: str
    prompt: str
    answers: Sequence[AnswerDiff]
    right: str = ""
    """The right answer; empty: not known."""
    score: str = ""
    """Rewards of the answer, where it is shown for these."""


@dataclass(frozen=True)
class Generations:
    """Sample answers, with a filter."""

    kind = "generations"
    title: str
    note: str
    rows: Sequence[Generation]


class Item(NamedTuple):
    """A pair two models disagree on."""

    id: str
    cluster: str
    category: str
    before: str
    after: str
    margin_before: float
    margin_after: float
    texts: tuple[str, str, str] | None
    """Prompt, chosen and rejected answer; None if the data is not available."""


class Disagreement(NamedTuple):
    """The pairs on which two models disagree: the rows shown, and the total number."""

    names: tuple[str, str]
    rows: Sequence[Item]
    total: int


@dataclass(frozen=True)
class Items:
    """A browsable list of pairs, with a filter."""

    kind = "items"
    title: str
    note: str
    groups: Sequence[Disagreement]
    unit: str = "nats"
    """Unit of the margins."""


class Fact(NamedTuple):
    """Names and values under a collapsible heading, and a longer preformatted text."""

    summary: str
    values: Sequence[tuple[str, str]]
    text: str = ""


@dataclass(frozen=True)
class Facts:
    """The information needed to repeat a run."""

    kind = "facts"
    title: str
    facts: Sequence[Fact]


Section = SortableTable | Figures | Generations | Items | Facts


class Page(NamedTuple):
    """A report: its verdict first, then its sections."""

    title: str
    subtitle: str
    verdict: str
    notes: Sequence[str]
    sections: Sequence[Section]


NOT_FINITE = "not finite"


def number_cell(value: float | None, form: str = ".3f") -> TableCell:
    """Return the cell of a number: a dash for None, words if it is not finite."""
    if value is None:
        return TableCell("-")
    return TableCell(format(value, form), value) if math.isfinite(value) else TableCell(NOT_FINITE)


def amount_cell(value: float | None) -> TableCell:
    """Return the cell of a non-negative amount: three significant digits, integers from 100."""
    return number_cell(value, ".3g" if value is None or value < 100 else ",.0f")


def fact_text(value: Any) -> str:
    """Return a value as text for a fact."""
    return "-" if value is None else str(value)
