"""``align losses``: the installed losses of pairs."""

from __future__ import annotations

import json
from typing import Any

import click
from alignkit.contract import registry
from alignkit.errors import PluginError

from alignkit_commands.listing import print_columns


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def losses(as_json: bool) -> None:
    """List the installed losses of pairs: method dpo takes all of them, cpo those without a reference.

    align run --method dpo --set loss=NAME
    """
    found = [_described(name, entry) for name, entry in registry.usable("align.losses").items()]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows: list[tuple[str, ...]] = [("NAME", "NEEDS", "LOSS OF A PAIR", "PAPER")]
    for record in found:
        paper = record["paper"] + (f", eq. {record['equation']}" if record["equation"] else "")
        rows.append((record["name"], ", ".join(record["needs"]) or "-", record["summary"], paper))
    print_columns(rows, flexible=2)


def _described(name: str, entry: registry.PluginEntry) -> dict[str, Any]:
    record = {"name": name, "distribution": f"{entry.distribution} {entry.version}", "built_in": entry.built_in}
    try:
        loss = registry.load(entry)
    except PluginError as error:
        return record | {"needs": [], "summary": "broken", "paper": str(error), "equation": ""}
    summary = (loss.__doc__ or "").strip().partition("\n")[0].replace("``", "")
    needs, whole_step = sorted(loss.needs), loss.whole_step
    about = {"paper": loss.paper, "equation": loss.equation, "summary": summary}
    return record | {"needs": needs, "whole_step": whole_step, "nll_weight": loss.nll_weight} | about
