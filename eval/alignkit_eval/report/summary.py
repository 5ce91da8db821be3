"""What a run prints at its end: the metrics before and after training, and sample answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignkit import SuiteResult
from alignkit.display.console import Console

from alignkit_eval.headline import headline, signed, with_interval

if TYPE_CHECKING:
    from rich.table import Table

_WIDEST = 1000
_NARROW = 8
"""Width of titles of metrics where there is little room."""


def print_summary(
    console: Console,
    before: Mapping[str, SuiteResult],
    after: Mapping[str, SuiteResult],
    samples: Sequence[Mapping[str, Any]],
) -> None:
    """Print the table of metrics and two of the samples."""
    if after:
        _print_table(console, comparison_table(before, after))
    for sample in samples[:2]:
        for part in ("prompt", "before", "after"):
            console.info(f"{part:>7}: {short(sample[part])}")


def _print_table(console: Console, table: Table) -> None:
    """Print a table; where the terminal is too narrow for its numbers, a line for each row."""
    title, *others = ([str(cell).replace("\n", " ") for cell in column.cells] for column in table.columns)
    spare = max(map(len, title), default=0) - _NARROW  # titles may be wrapped
    needed = console.rich.measure(table, options=console.rich.options.update(max_width=_WIDEST)).maximum
    if needed - max(spare, 0) <= console.rich.width:
        console.table(table)
        return
    console.info(str(table.title))
    names = [str(column.header) for column in table.columns[1:]]
    for name, cells in zip(title, zip(*others, strict=True), strict=True):
        console.info(f"{name}: " + ", ".join(f"{what} {cell}" for what, cell in zip(names, cells, strict=True)))


def comparison_table(before: Mapping[str, SuiteResult], after: Mapping[str, SuiteResult]) -> Table:
    """Return the table of the main metrics by suite before (may be empty) and after training, with 95 % intervals.

    The interval of a change is that of the paired difference on the same items.
    """
    from rich.table import Table

    from alignkit_eval.comparison.compare import changes

    title = "held-out metrics, with 95 % intervals" + (" (of changes: paired)" if before else "")
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("metric", overflow="fold")
    for name in ("before", "after", "change", "items") if before else ("after",):
        table.add_column(name, justify="right")
    metrics = [{suite: result.metrics for suite, result in results.items()} for results in (before, after)]
    paired = changes(before, after) if before else {}
    for line in headline(*metrics):
        if not before:
            table.add_row(line.title, with_interval(line.after))
            continue
        change = paired.get((line.suite, line.metric))
        ends = "" if change is None or change.low is None else f" [{signed(change.low)}, {signed(change.high)}]"
        cells = with_interval(line.before), with_interval(line.after), f"{signed(line.change)}{ends}"
        table.add_row(line.title, *(cell.replace(" [", "\n[") for cell in cells), f"{change.n:,}" if change else "-")
    return table


def short(text: str, width: int = 160) -> str:
    r"""Return a text on one line, cut to ``width`` characters.

    >>> short("two  lines\nof text", 12)
    'two lines...'
    """
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."
