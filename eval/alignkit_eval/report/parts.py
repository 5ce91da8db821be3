"""What a report page is made of: plain data that the template lays out."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


class Cell(NamedTuple):
    """A cell of a table: what is shown, and the number it is sorted by (None: its text)."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table that sorts by its columns; the first column names the row."""

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture with the words that stand for it."""

    title: str
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
class Answer:
    """One answer to a prompt, with what changed since the first one."""

    name: str
    words: Sequence[Word]


@dataclass(frozen=True)
class Generation:
    """A prompt and its answers side by side."""

    id: str
    prompt: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Generations:
    """Sample answers, with a filter."""

    kind: ClassVar[str] = "generations"
    title: str
    rows: Sequence[Generation]


@dataclass(frozen=True)
class Item:
    """A pair two models disagree on; the texts are empty where they could not be read."""

    id: str
    cluster: str
    category: str
    before: str
    after: str
    margin_before: float
    margin_after: float
    prompt: str = ""
    chosen: str = ""
    rejected: str = ""


@dataclass(frozen=True)
class Items:
    """The pairs on which two models disagree, one to open at a time."""

    kind: ClassVar[str] = "items"
    title: str
    names: tuple[str, str]
    rows: Sequence[Item]
    total: int


@dataclass(frozen=True)
class Facts:
    """Names and values: what is needed to repeat it."""

    kind: ClassVar[str] = "facts"
    title: str
    facts: Sequence[tuple[str, str]]
    text: str = ""
    """A longer text, shown as it stands."""


Section = Table | Figures | Generations | Items | Facts


@dataclass(frozen=True)
class Page:
    """A report: its verdict first, then its sections."""

    title: str
    subtitle: str
    verdict: str
    notes: Sequence[str]
    sections: Sequence[Section]


def number_cell(value: float | None, form: str = ".3f") -> Cell:
    """Return a number's cell: a dash where there is none, words where it is not finite."""
    if value is None:
        return Cell("-")
    return Cell(format(value, form), value) if math.isfinite(value) else Cell("not finite")


def picture(title: str, alt: str, drawing: Drawing) -> Figure:
    """Return a drawing as a figure: SVG in a ``data:`` address, which can neither run scripts nor clash with another's ids."""
    import matplotlib as mpl

    stream = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "alignkit"}):
        drawing.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return Figure(title, alt, "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode())


def plain(value: Any) -> str:
    """Return a value on one line, as a fact shows it."""
    return "-" if value is None else str(value)
