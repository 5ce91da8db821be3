"""``align compare``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from alignkit.cli.failures import debug_option

if TYPE_CHECKING:
    from alignkit.display.console import Console
    from rich.table import Table

    from alignkit_eval.comparison.result import Comparison


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...", type=click.Path(path_type=Path))
@click.option(
    "--baseline", metavar="RUN", help="What the others are compared with (default: the first); start: the start model."
)
@click.option(
    "--html", metavar="FILE", type=click.Path(path_type=Path), help="Also write the comparison as one HTML page."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def compare(runs: tuple[Path, ...], baseline: str | None, html: Path | None, as_json: bool) -> None:
    """Compare runs on the same held-out items; runs that differ in the seed alone are one arm."""
    from alignkit.display.console import Console

    from alignkit_eval.comparison.compare import compare as make

    comparison = make(runs, baseline)
    if html is not None:
        from alignkit_eval.report import comparison_report

        click.echo(f"report: {comparison_report(comparison, html)}", err=True)
    if as_json:
        click.echo(json.dumps(comparison.to_json(), indent=2, ensure_ascii=False))
        return
    show(comparison, Console(stream=sys.stdout))


_MOST_COLUMNS = 5
"""Metrics a terminal of 80 columns has room for beside one another."""


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print a comparison: the verdict, the arms, the contrasts, the costs, and what a reader must know.

    Args:
        comparison: what is printed.
        console: where; default: stderr.
    """
    from alignkit.display.console import Console

    console = console or Console()
    console.info(comparison.verdict)
    console.table(arms_table(comparison))
    console.table(contrasts_table(comparison))
    if any(arm.cost.tokens is not None for arm in comparison.arms):
        console.table(cost_table(comparison))
    for note in comparison.notes:
        console.info(f"note: {note}")


def arms_table(comparison: Comparison) -> Table:
    """Return one row an arm: its main metrics, each with its interval below it; many metrics: one row each."""
    from alignkit.display.headline import headline, with_interval
    from rich.text import Text

    lines = [headline({}, arm.metrics) for arm in comparison.arms]
    titles = list(dict.fromkeys(line.title for found in lines for line in found))
    if len(titles) > _MOST_COLUMNS:
        table = _table("arms, with 95 % intervals", ["arm", "metric"], ["value"])
        for arm, found in zip(comparison.arms, lines, strict=True):
            for i, line in enumerate(found):
                table.add_row(Text("" if i else arm.name), line.title, with_interval(line.after))
        return table
    table = _table("arms, with 95 % intervals", ["arm"], titles, wrap=True)
    for arm, found in zip(comparison.arms, lines, strict=True):
        shown = {line.title: with_interval(line.after).replace(" [", "\n[") for line in found}
        table.add_row(Text(arm.name), *(shown.get(title, "-") for title in titles))
    return table


def contrasts_table(comparison: Comparison) -> Table:
    """Return one row a contrast: difference, interval, p, and the smallest difference that would have shown."""
    from alignkit.display.headline import TITLES, number, signed
    from rich.text import Text

    from alignkit_eval.comparison.verdict import p_text

    title = f"difference to {comparison.baseline}, paired on the same items; p after Holm's correction"
    table = _table(title, ["arm", "metric"], ["difference", "95 % interval", "p", "detectable"])
    before = None
    for c in comparison.contrasts:
        interval = "-" if c.low is None or c.high is None else f"{signed(c.low)} .. {signed(c.high)}"
        p = "-" if c.p_holm is None else p_text(c.p_holm)
        detectable = "-" if c.detectable is None else number(c.detectable)
        style = None if c.better is None else "green" if c.better else "red"
        name = TITLES.get((c.suite, c.metric), c.metric)
        arm, before = "" if c.arm == before else c.arm, c.arm
        table.add_row(Text(arm), Text(name), signed(c.diff), interval, p, detectable, style=style)
    return table


def cost_table(comparison: Comparison) -> Table:
    """Return what each arm cost to train, earlier stages and reference passes included."""
    from rich.text import Text

    table = _table("cost of training", ["arm"], ["seeds", "tokens", "TFLOP", "seconds", "memory (GiB)"])
    for arm in comparison.arms:
        cost = arm.cost
        flops = None if cost.flops is None else cost.flops / 1e12
        cells = (_amount(value) for value in (cost.tokens, flops, cost.seconds, cost.memory_gb))
        trained = "method" in arm.settings  # a model that was evaluated on its own has no seed
        table.add_row(Text(arm.name), ", ".join(map(str, arm.seeds)) if trained else "-", *cells)
    return table


def _table(title: str, words: Sequence[str], numbers: Sequence[str], *, wrap: bool = False) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for name in words:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold", no_wrap=not wrap)
    return table


def _amount(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
