"""``align methods``, ``suites``, ``rewards`` and ``services``: what is installed, from metadata alone."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

import click

from alignkit.cli.failures import debug_option
from alignkit.contract import registry


def _listing(group: registry.Group) -> click.Command:
    """Return the command that lists ``group``."""
    plural = group.removeprefix("align.")

    @click.command(plural, help=f"List the installed {plural}. No plugin is imported.")
    @click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
    @debug_option
    def command(as_json: bool) -> None:
        found = registry.catalogue(group)
        if as_json:
            click.echo(json.dumps([_record(entry) for entry in found.entries], indent=2))
        else:
            _print_table(plural, found.entries)
        for problem in found.unreadable:
            click.echo(f"Note: the entry points of a distribution cannot be read: {problem}", err=True)

    return command


def _record(entry: registry.PluginEntry) -> dict[str, str | bool]:
    return dataclasses.asdict(entry) | {"built_in": entry.built_in, "blocked": entry.blocked}


def _print_table(plural: str, entries: tuple[registry.PluginEntry, ...]) -> None:
    if not entries:
        click.echo(f"No {plural} are installed.")
        return
    rows = [("NAME", "DISTRIBUTION", "FROM", "")]
    rows += [(entry.name, f"{entry.distribution} {entry.version}", entry.value, _remark(entry)) for entry in entries]
    print_columns(rows)


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in aligned columns, the first row as the heading. Nothing is wrapped or cut, also in a pipe."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if i == 0 and sys.stdout.isatty() else line)


def _remark(entry: registry.PluginEntry) -> str:
    """Return what a user should know before using the plugin."""
    if entry.blocked:
        return f"blocked by {registry.ALLOWED_VARIABLE}"
    if entry.built_in:
        return "built in"
    rivals = [other for other in registry.entries(entry.group) if other.name == entry.name and other != entry]
    if any(not rival.blocked for rival in rivals):
        return f"use it as {entry.qualified}"
    return entry.summary


methods = _listing("align.methods")
suites = _listing("align.suites")
rewards = _listing("align.rewards")
services = _listing("align.services")
