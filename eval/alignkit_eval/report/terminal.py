"""Tables of a report on the terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from alignkit_eval.report.parts import SortableTable, TableCell

if TYPE_CHECKING:
    from rich.table import Table

_MOST_COLUMNS = 5
"""Maximum number columns in a terminal of 80 columns."""


def terminal_table(table: SortableTable, hidden: Collection[str] = (), *, stacked: bool = False) -> Table:
    """Return a table for the terminal, with better rows in green and worse rows in red.

    A table with too many number columns is shown with one row per number.

    Args:
        table: the table.
        hidden: columns to leave out.
        stacked: show intervals below their values.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = _without(table, hidden)
    if len(table.columns) - 1 > _MOST_COLUMNS and not any(table.worded[1:]):
        table, stacked = _long(table), False
    made = Table(
        title=Text(table.title).append(f"\n{table.note}" if table.note else "", "not bold"),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name, worded in zip(table.columns, table.worded, strict=True):
        made.add_column(
            name, justify="left" if worded else "right", overflow="fold", no_wrap=not worded and not stacked
        )
    above = None
    for first, *rest in table.rows:
        texts = [cell.text.replace(" [", "\n[") if stacked else cell.text for cell in rest]
        style = next((_STYLES[cell.better] for cell in rest if cell.better is not None), None)
        made.add_row(*map(Text, ["" if first.text == above else first.text, *texts]), style=style)
        above = first.text
    return made


_STYLES = {True: "green", False: "red"}


def _without(table: SortableTable, hidden: Collection[str]) -> SortableTable:
    kept = [i for i, name in enumerate(table.columns) if name not in hidden]
    rows = [[row[i] for i in kept] for row in table.rows]
    return replace(table, columns=[table.columns[i] for i in kept], rows=rows)


def _long(table: SortableTable) -> SortableTable:
    """Return the table with one row per number: row name, column name, value."""

    def rows() -> Iterator[list[TableCell]]:
        for first, *rest in table.rows:
            for name, cell in zip(table.columns[1:], rest, strict=True):
                if cell.text != "-":
                    yield [first, TableCell(name), cell]

    return replace(table, columns=(table.columns[0], "metric", "value"), rows=list(rows()))
