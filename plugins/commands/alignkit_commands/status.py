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

STARTING = 60.0
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
@click.option(
    "--wait",
    metavar="S",
    type=click.FloatRange(0),
    default=STARTING,
    show_default=True,
    help="Seconds to wait for a run that is starting.",
)
def watch(run: Path, every: float, wait: float) -> None:
    """Follow the run in directory RUN: curves of loss terms, margins and rewards, samples, time left.

    A run that is about to start is waited for.
    Stops when the run ends; Ctrl-C stops watching, not the run. Without a terminal, every change is printed.
    """
    from rich.live import Live

    from alignkit_commands.progress import GOING_ON, lines, read_status

    _await_start(run, wait)
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


def _await_start(run: Path, seconds: float) -> None:
    """Wait until there is a run in a directory that is missing, empty or being prepared; raises if none comes."""
    from alignkit.errors import ConfigError, suggest
    from alignkit.rundir.directory import RunDir

    begun = time.monotonic()
    said = was_there = False
    while _is_about_to_start(run):
        waited = time.monotonic() - begun
        if waited >= seconds:
            beside = sorted(path.parent.name for path in run.parent.glob("*/run.json"))
            near = suggest(run.name, beside) or (f"; the runs beside it are {', '.join(beside[:8])}" if beside else "")
            raise ConfigError(f"{run} did not start within {seconds:g} s{near}")
        if was_there and not run.exists():
            raise ConfigError(f"{run} was removed: its start failed, for the reason printed where it was started")
        was_there = was_there or run.exists()
        if not said:
            click.echo(f"waiting up to {seconds:g} s for {run} to start (Ctrl-C ends this)", err=True)
            said = True
        time.sleep(min(0.2, max(seconds - waited, 0.01)))
    RunDir.open(run)


def _is_about_to_start(run: Path) -> bool:
    """Return whether a directory may yet become a run's: it is missing, or has nothing but a lock and a log."""
    return not run.exists() or (run.is_dir() and {path.name for path in run.iterdir()} <= {".lock", "train.log"})


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
