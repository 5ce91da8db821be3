"""What a report page is made of: plain data that the template lays out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple


class TableCell(NamedTuple):
    """A cell of a table: its text, the number it is sorted by (None or not finite: by its text), and a judgement."""

    text: str
    value: float | None = None
    better: bool | None = None
    """Whether it is significantly better (True) or worse (False) than what it is compared with."""


@dataclass(frozen=True)
class SortableTable:
    """A table that sorts by its columns; the first column names the row."""

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    note: str = ""

    @property
    def worded(self) -> list[bool]:
        """Whether each column holds words, which stand on the left, not numbers."""
        columns = list(zip(*self.rows, strict=True)) or [() for _ in self.columns]
        return [
            all(cell.value is None for cell in column) and any(cell.text not in ("-", NOT_FINITE) for cell in column)
            for column in columns
        ]


@dataclass(frozen=True)
class Figure:
    """A picture with the words that stand for it."""

    alt: str
    source: str
    """A ``data:`` address."""


@dataclass(frozen=True)
class Figures:
    """Pictures side by side."""

    kind: ClassVar[str] = "figures"
    title: str
    figures: Sequence[Figure]


class Word(NamedTuple):
    """A piece of a text in a comparison of two: ``same``, ``gone`` or ``new``."""

    change: str
    text: str


@dataclass(frozen=True)
class AnswerDiff:
    """One answer to a prompt, with what changed since the first one."""

    name: str
    words: Sequence[Word]


@dataclass(frozen=True)
class Generation:
    """A prompt and its answers side by side."""

    id: str
    prompt: str
    answers: Sequence[AnswerDiff]


@dataclass(frozen=True)
class Generations:
    """Sample answers, with a filter."""

    kind: ClassVar[str] = "generations"
    title: str
    note: str
    rows: Sequence[Generation]


@dataclass(frozen=True)
class Item:
    """A pair two models disagree on; the texts are None where they are not at hand."""

    id: str
    cluster: str
    category: str
    before: str
    after: str
    margin_before: float
    margin_after: float
    texts: tuple[str, str, str] | None
    """Prompt, chosen and rejected answer."""


@dataclass(frozen=True)
class Disagreement:
    """The pairs on which two models disagree: those shown, and how many there are."""

    names: tuple[str, str]
    rows: Sequence[Item]
    total: int


@dataclass(frozen=True)
class Items:
    """An explorer of pairs, one to open at a time, with a filter."""

    kind: ClassVar[str] = "items"
    title: str
    note: str
    groups: Sequence[Disagreement]


@dataclass(frozen=True)
class Fact:
    """Names and values under a heading that opens, and a longer text that is shown as it stands."""

    summary: str
    values: Sequence[tuple[str, str]]
    text: str = ""


@dataclass(frozen=True)
class Facts:
    """What is needed to repeat it."""

    kind: ClassVar[str] = "facts"
    title: str
    facts: Sequence[Fact]


Section = SortableTable | Figures | Generations | Items | Facts


@dataclass(frozen=True)
class Page:
    """A report: its verdict first, then its sections."""

    title: str
    subtitle: str
    verdict: str
    notes: Sequence[str]
    sections: Sequence[Section]


NOT_FINITE = "not finite"


def number_cell(value: float | None, form: str = ".3f") -> TableCell:
    """Return a number's cell: a dash where there is none, words where it is not finite."""
    if value is None:
        return TableCell("-")
    return TableCell(format(value, form), value) if math.isfinite(value) else TableCell(NOT_FINITE)


def amount_cell(value: float | None) -> TableCell:
    """Return the cell of an amount that is not negative: three significant digits, whole numbers from 100 on."""
    return number_cell(value, ".3g" if value is None or value < 100 else ",.0f")


def fact_text(value: Any) -> str:
    """Return a value on one line, as a fact shows it."""
    return "-" if value is None else str(value)
