"""``align compare``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from alignkit.display.console import Console

    from alignkit_eval.comparison.result import Comparison


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...", type=click.Path(path_type=Path))
@click.option(
    "--baseline",
    metavar="RUN",
    help="Run to compare the others with (default: the first), or start for their common start model.",
)
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the comparison to an HTML page.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def compare(runs: tuple[Path, ...], baseline: str | None, html: Path | None, as_json: bool) -> None:
    """Compare runs on the same held-out items. Runs that differ only in their seed are one arm."""
    from alignkit.display.console import Console
    from alignkit.system.files import require_writable

    from alignkit_eval.comparison.compare import compare as make

    if html is not None:
        require_writable(html)
    comparison = make(runs, baseline)
    if html is not None:
        from alignkit_eval.report import comparison_report

        click.echo(f"report: {comparison_report(comparison, html)}", err=True)
    if as_json:
        click.echo(json.dumps(comparison.to_json(), indent=2, ensure_ascii=False))
        return
    show(comparison, Console(stream=sys.stdout))


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print a comparison, by default to stderr: verdict, arms, contrasts, costs and notes."""
    from alignkit.display.console import Console

    from alignkit_eval.report import tables
    from alignkit_eval.report.terminal import terminal_table

    console = console or Console()
    console.info(comparison.verdict)
    console.table(terminal_table(tables.arms(comparison), {"seeds"}, stacked=True))
    console.table(terminal_table(tables.contrasts(comparison), {"items in clusters", "verdict"}))
    if any(arm.cost.tokens is not None for arm in comparison.arms):
        console.table(terminal_table(tables.costs(comparison)))
    for note in comparison.notes:
        console.info(f"note: {note}")
