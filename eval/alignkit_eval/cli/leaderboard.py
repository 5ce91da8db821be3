"""``align leaderboard``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


@click.command()
@click.argument("directory", required=False, default="runs", metavar="[DIR]", type=click.Path(path_type=Path))
@click.option(
    "--metric", metavar="METRIC", help="Metric to rank by (default: the first that decides, accuracy by sum)."
)
@click.option(
    "--where",
    metavar="KEY=VALUE,...",
    multiple=True,
    help="Keep runs with this setting: method=dpo,orpo, lambda=0.1, train.learning_rate=1e-4, seed=0.",
)
@click.option(
    "--sort",
    metavar="COLUMN",
    default="quality",
    show_default=True,
    help="Order of the arms: quality, name, tokens, cpu_seconds or memory_gb.",
)
@click.option("--top", metavar="N", type=click.IntRange(min=1), help="Show the first N arms of each board.")
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the leaderboard to an HTML page.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the leaderboard as JSON.")
def leaderboard(
    directory: Path,
    metric: str | None,
    where: tuple[str, ...],
    sort: str,
    top: int | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Rank all runs below DIR (default: runs) that were evaluated on the same items, with the cost of each.

    Runs that differ only in their seed are one arm. Others are listed apart, with the reason.
    """
    from dataclasses import replace

    from alignkit.display.console import Console
    from alignkit.system.files import require_writable

    from alignkit_eval.leaderboard.board import leaderboard as rank
    from alignkit_eval.leaderboard.page import apart_table, board_table, sentence, write_leaderboard
    from alignkit_eval.report.terminal import terminal_table

    if html is not None:
        require_writable(html)
    found = rank(directory, metric, where, sort)
    if html is not None:
        click.echo(f"report: {write_leaderboard(found, html)}", err=True)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
        return
    console = Console(stream=sys.stdout)
    console.info(sentence(found))
    for board in found.boards:
        table = board_table(board)
        console.table(terminal_table(replace(table, rows=table.rows[:top]), {"seeds"}, stacked=True))
        if top is not None and top < len(table.rows):
            console.info(f"{len(table.rows) - top} more: leave out --top to see them")
    if found.apart:
        console.table(terminal_table(apart_table(found)))
