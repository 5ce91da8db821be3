"""``align methods``, ``suites``, ``rewards``, ``samplers``, ...: the installed plugins, from metadata alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click
from alignkit.contract import registry


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
    rows = [("NAME", "DISTRIBUTION", "FROM", "")]
    rows += [(e.name, f"{e.distribution} {e.version}", e.value, _remark(e, names.get(e))) for e in entries]
    print_columns(rows)


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in aligned columns, the first row as the heading, without wrapping or truncation."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if i == 0 and sys.stdout.isatty() else line)


def _remark(entry: registry.PluginEntry, name: str | None) -> str:
    """Return what a user should know before using the plugin, which is called by ``name`` (None: it is blocked)."""
    if name is None:
        return f"blocked by {registry.ALLOWED_VARIABLE}"
    if entry.built_in:
        return "built in"
    return entry.summary if name == entry.name else f"use it as {name}"


methods = _listing("align.methods")
suites = _listing("align.suites")
rewards = _listing("align.rewards")
services = _listing("align.services")
samplers = _listing("align.samplers")
schedulers = _listing("align.schedulers")
stages = _listing("align.stages")
