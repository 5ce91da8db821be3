"""Tables of a report on the terminal."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from alignkit_eval.report.parts import SortableTable, TableCell

if TYPE_CHECKING:
    from rich.table import Table

_MAX_NUMBER_COLUMNS = 5
"""Maximum number columns in a terminal of 80 columns."""

_STYLES = {True: "green", False: "red"}


def terminal_table(table: SortableTable, hidden: Collection[str] = (), *, stacked: bool = False) -> Table:
    """Return a table for the terminal, with better rows in green and worse rows in red.

    A table with too many number columns is shown with one row per number.

    Args:
        hidden: columns to leave out.
        stacked: show intervals below their values.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = [i for i, name in enumerate(table.columns) if name not in hidden]
    rows = [[row[i] for i in shown] for row in table.rows]
    table = replace(table, columns=[table.columns[i] for i in shown], rows=rows)
    if len(table.columns) - 1 > _MAX_NUMBER_COLUMNS and not any(table.is_text[1:]):
        table, stacked = _long(table), False
    made = Table(
        title=Text(table.title).append(f"\n{table.note}" if table.note else "", "not bold"),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name, text in zip(table.columns, table.is_text, strict=True):
        made.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=not text and not stacked)
    above = None
    for first, *rest in table.rows:
        texts = [cell.text.replace(" [", "\n[") if stacked else cell.text for cell in rest]
        style = next((_STYLES[cell.better] for cell in rest if cell.better is not None), None)
        made.add_row(*map(Text, ["" if first.text == above else first.text, *texts]), style=style)
        above = first.text
    return made


def _long(table: SortableTable) -> SortableTable:
    """Return the table with one row per number: row name, column name, value."""
    rows = [
        (first, TableCell(name), cell)
        for first, *rest in table.rows
        for name, cell in zip(table.columns[1:], rest, strict=True)
        if cell.text != "-"
    ]
    return replace(table, columns=(table.columns[0], "metric", "value"), rows=rows)
