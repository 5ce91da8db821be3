"""``align methods``, ``suites``, ``rewards``, ``samplers``, ...: the installed plugins, from metadata alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click
from alignkit.contract import registry

from alignkit_commands.descriptions import description

NARROWEST = 20
"""Least width of a column that is cut to the terminal."""


def _listing(group: registry.Group) -> click.Command:
    plural = group.removeprefix("align.")

    @click.command(plural, help=f"List the installed {plural}. No plugin is imported.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    def command(as_json: bool) -> None:
        found = registry.catalogue(group)
        if as_json:
            records = [asdict(e) | {"built_in": e.built_in, "blocked": e.blocked} for e in found.entries]
            click.echo(json.dumps(records, indent=2))
        else:
            _print_table(plural, found.entries)
        for problem in found.unreadable:
            click.echo(f"Note: unreadable entry points: {problem}", err=True)

    return command


def _print_table(plural: str, entries: Sequence[registry.PluginEntry]) -> None:
    if not entries:
        click.echo(f"No {plural} are installed.")
        return
    names = {entry: name for name, entry in registry.usable(entries[0].group).items()}
    rows = [("NAME", "DISTRIBUTION", "DESCRIPTION")]
    rows += [(e.name, f"{e.distribution} {e.version}", _about(e, names.get(e))) for e in entries]
    print_columns(rows, flexible=2)


def print_columns(rows: Sequence[Sequence[str]], flexible: int | None = None) -> None:
    """Print rows of text in aligned columns, the first row as the heading, without wrapping.

    Nothing is cut, except texts of the column ``flexible`` that do not fit into the terminal.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if flexible is not None and sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - sum(widths) - 2 * (len(widths) - 1) + widths[flexible]
        widths[flexible] = min(widths[flexible], max(room, NARROWEST))
    for i, row in enumerate(rows):
        cells = (
            cell if len(cell) <= width else f"{cell[: width - 1]}…" for cell, width in zip(row, widths, strict=True)
        )
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if i == 0 and sys.stdout.isatty() else line)


def _about(entry: registry.PluginEntry, name: str | None) -> str:
    """Return what a plugin is, and what a user should know before using it, who calls it ``name`` (None: it is blocked)."""
    if name is None:
        return f"blocked by {registry.ALLOWED_VARIABLE}"
    about = description(entry.value) or ("" if entry.built_in else entry.summary)
    return about if name == entry.name else f"use it as {name}{': ' * bool(about)}{about}"


methods = _listing("align.methods")
suites = _listing("align.suites")
rewards = _listing("align.rewards")
services = _listing("align.services")
samplers = _listing("align.samplers")
schedulers = _listing("align.schedulers")
engines = _listing("align.engines")
stages = _listing("align.stages")
