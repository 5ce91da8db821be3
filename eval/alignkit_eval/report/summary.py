"""What a run prints at its end: the metrics before and after training, and sample answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from alignkit import SuiteResult
from alignkit.display.console import Console

from alignkit_eval.comparison.items import Values, distinct, step_of
from alignkit_eval.comparison.paired import judge, minus
from alignkit_eval.headline import TITLES, headline, number, signed, with_interval
from alignkit_eval.statistics import effect

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
        interval = [number(bound) for bound in changes.get(line.title, ())]
        change = signed(line.change) + (f" [{interval[0]}, {interval[1]}]" if interval else "")
        cells = with_interval(line.before), with_interval(line.after), change
        table.add_row(line.title, *(cells if before else cells[1:2]))
    return table


def paired_changes(
    before: Mapping[str, SuiteResult], after: Mapping[str, SuiteResult]
) -> dict[str, tuple[float, float]]:
    """Return the paired interval of every change by title, as in a comparison with the start; of means and ratios of items."""
    found: dict[str, tuple[float, float]] = {}
    for suite in before.keys() & after.keys():
        old = {item["id"]: item for item in before[suite].items}
        for contrast in after[suite].contrasts:
            items = [i for i in after[suite].items if all(i.get(key) == v for key, v in contrast.where.items())]
            keys = [key for key in (contrast.numerator, contrast.denominator) if key is not None]
            if (share := contrast.denominator) is not None:  # an item without any share
                items = [i for i in items if i.get(share) != 0 or old.get(i["id"], {}).get(share) != 0] or items
            pairs = [(old.get(item["id"], {}), item) for item in items]
            values: Any = [[[pair[side].get(key) for pair in pairs] for key in keys] for side in (1, 0)]
            if contrast.log or not all(isinstance(v, int | float) for rows in values for row in rows for v in row):
                continue
            with suppress(ValueError):  # no items, or a denominator of 0
                clusters = [str(item["cluster"]) for item in items]
                new, start = (effect(*([row] for row in rows)) for rows in values)
                arms = [
                    Values((0,), side, clusters, distinct(*rows))
                    for side, rows in zip((new, start), values, strict=True)
                ]
                low, high = contrast.bounds
                reach = math.inf if low is None or high is None else high - low
                change = judge(minus(new, start), clusters, step=step_of(*arms), reach=reach)
                if change.low is None or change.high is None or not math.isfinite(change.high - change.low):
                    continue
                found[TITLES.get((suite, contrast.metric), contrast.metric)] = change.low, change.high
    return found


def short(text: str, width: int = 160) -> str:
    r"""Return a text on one line, cut to ``width`` characters.

    >>> short("two  lines\nof text", 12)
    'two lines...'
    """
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."
