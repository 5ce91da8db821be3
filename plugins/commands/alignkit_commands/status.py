"""``align status`` and ``align watch``."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from alignkit.system.terminal import printable, rich_console

STARTING = 20
"""Seconds that a run just started may take until it makes its directory."""
BLOCKS = "▁▂▃▄▅▆▇█"


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(run: Path, as_json: bool) -> None:
    """Show the status of the run in directory RUN: step, time left, latest metrics."""
    from alignkit_commands.progress import lines, read_status

    found = read_status(run)
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else "\n".join(lines(found)))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--every", metavar="S", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds between updates."
)
def watch(run: Path, every: float) -> None:
    """Follow the run in directory RUN: curves of loss terms, margins and rewards, samples, time left.

    Stops when the run ends; Ctrl-C stops watching, not the run. Without a terminal, every change is printed.
    """
    from rich.live import Live

    from alignkit_commands.progress import GOING_ON, lines, read_status

    if _is_about_to_start(run):
        click.echo(f"waiting up to {STARTING} s for {run} to appear", err=True)
    until = time.monotonic() + STARTING
    while _is_about_to_start(run) and time.monotonic() < until:
        time.sleep(0.2)
    found = read_status(run)
    if not sys.stdout.isatty():
        printed = None
        while True:
            if (now := lines(found)) != printed:
                click.echo("\n".join(now))
                printed = now
            if found.status not in GOING_ON:
                return
            time.sleep(every)
            found = read_status(run)
    with (
        suppress(KeyboardInterrupt),
        Live(_view(found), console=rich_console(sys.stdout), refresh_per_second=4) as live,
    ):
        while found.status in GOING_ON:
            time.sleep(every)
            found = read_status(run)
            live.update(_view(found))


def _is_about_to_start(run: Path) -> bool:
    return not run.exists() or (run.is_dir() and not any(run.iterdir()))


def curve(values: list[float], width: int) -> str:
    """Return numbers as a line of block characters, scaled from lowest to highest; more than ``width`` are averaged.

    >>> curve([0, 1, 2, 3], 4)
    '▁▃▆█'
    """
    size = max(-(-len(values) // width), 1)
    means = [sum(part) / len(part) for part in (values[i : i + size] for i in range(0, len(values), size))]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1))] for mean in means)


def _view(found: Any) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from alignkit_commands.progress import SHOWN, lines

    table = Table(show_header=False, box=None, padding=(0, 1))
    names = [name for name in SHOWN if name in found.latest] + sorted(n for n in found.latest if n.startswith("loss/"))
    for name in names:
        values = [float(r[name]) for r in found.history if isinstance(r.get(name), int | float) and r[name] == r[name]]
        if values:
            table.add_row(name, f"{values[-1]:.4g}", curve(values, 48))
    samples = [
        Text(printable(f"{part:>7}: {_short(str(row[part]))}"))
        for row in found.samples[:2]
        for part in row
        if part != "id"
    ]
    head = [printable(line) for line in lines(found)]
    return Group(
        Text(head[0], style="bold"), table, *(Text(line) for line in head[1:] if line.lstrip()[:4] != "loss"), *samples
    )


def _short(text: str, width: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."
