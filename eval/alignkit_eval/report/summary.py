"""What a run prints at its end: the metrics before and after training, and sample answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from alignkit import SuiteResult
from alignkit.display.console import Console

from alignkit_eval.comparison.paired import effect, judge, minus
from alignkit_eval.headline import TITLES, headline, number, signed, with_interval

if TYPE_CHECKING:
    from rich.table import Table


def print_summary(
    console: Console,
    before: Mapping[str, SuiteResult],
    after: Mapping[str, SuiteResult],
    samples: Sequence[Mapping[str, Any]],
) -> None:
    """Print the table of metrics and two of the samples."""
    if after:
        console.table(comparison_table(before, after))
    for sample in samples[:2]:
        for part in ("prompt", "before", "after"):
            console.info(f"{part:>7}: {short(sample[part])}")


def comparison_table(before: Mapping[str, SuiteResult], after: Mapping[str, SuiteResult]) -> Table:
    """Return the table of the main metrics by suite before (may be empty) and after training, with 95 % intervals."""
    from rich.table import Table

    table = Table(
        title="held-out metrics, with 95 % intervals (of changes: paired)", title_justify="left", title_style="bold"
    )
    table.add_column("metric", overflow="fold")
    for name in ("before", "after", "change") if before else ("after",):
        table.add_column(name, justify="right")
    metrics = [{suite: result.metrics for suite, result in results.items()} for results in (before, after)]
    changes = paired_changes(before, after)
    for line in headline(*metrics):
        half = f" ± {number(changes[line.title])}" if line.title in changes else ""
        cells = with_interval(line.before), with_interval(line.after), signed(line.change) + half
        table.add_row(line.title, *(cells if before else cells[1:2]))
    return table


def paired_changes(before: Mapping[str, SuiteResult], after: Mapping[str, SuiteResult]) -> dict[str, float]:
    """Return half the width of the paired interval of every change, by title; of means and ratios over the same items."""
    found: dict[str, float] = {}
    for suite in before.keys() & after.keys():
        old = {item["id"]: item for item in before[suite].items}
        for contrast in after[suite].contrasts:
            items = [i for i in after[suite].items if all(i.get(key) == v for key, v in contrast.where.items())]
            keys = [key for key in (contrast.numerator, contrast.denominator) if key is not None]
            pairs = [(old.get(item["id"], {}), item) for item in items]
            values: Any = [[[pair[side].get(key) for pair in pairs] for key in keys] for side in (1, 0)]
            if contrast.log or not all(isinstance(v, int | float) for rows in values for row in rows for v in row):
                continue
            with suppress(ValueError):  # no items, or a denominator of 0
                new, start = (effect(*([row] for row in rows)) for rows in values)
                change = judge(minus(new, start), [item["cluster"] for item in items])
                if change.high is not None:
                    found[TITLES.get((suite, contrast.metric), contrast.metric)] = change.high - change.diff
    return found


def short(text: str, width: int = 160) -> str:
    r"""Return a text on one line, cut to ``width`` characters.

    >>> short("two  lines\nof text", 12)
    'two lines...'
    """
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."
