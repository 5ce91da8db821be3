"""``align plugins``, ``align plugins check`` and ``align new-plugin``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from alignkit.cli.failures import debug_option
from alignkit.cli.listing import print_columns
from alignkit.errors import ConfigError
from alignkit.scaffold import KINDS


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_context
@debug_option
def plugins(ctx: click.Context, as_json: bool) -> None:
    """List every installed plugin, with its hooks and whether it can be used. Each is imported, none can do harm."""
    if ctx.invoked_subcommand is not None:
        return
    from alignkit.contract.inventory import inventory

    found = inventory()
    if as_json:
        click.echo(json.dumps([plugin._asdict() for plugin in found], indent=2))
        return
    head = ("KIND", "NAME", "DISTRIBUTION", "STATE", "HOOKS OR CAUSE")
    rows = [(p.kind, p.name, f"{p.distribution} {p.version}", p.state, p.cause or ", ".join(p.hooks)) for p in found]
    print_columns([head, *rows])


@plugins.command("check")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), help="Where plugins of two kinds share the name.")
@debug_option
def check_plugin(name: str, kind: str | None) -> None:
    """Run the quick part of the conformance kit on the installed plugin NAME (needs pytest)."""
    from alignkit.contract.inventory import quick_check

    code = quick_check(name, kind)
    if code:
        sys.exit(1)
    click.echo(f"{name}: the quick part of the kit passes; its whole is for the plugin's own tests", err=True)


@click.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), default="method", show_default=True, help="What it is to be.")
@click.option(
    "--output", metavar="DIR", type=click.Path(path_type=Path), default=Path(), help="Where to (default: here)."
)
@debug_option
def new_plugin(name: str, kind: str, output: Path) -> None:
    """Write a package with one working plugin: entry point, code, conformance test, README, CI."""
    from alignkit.scaffold import new_plugin as write

    if not output.is_dir():
        raise ConfigError(f"--output {output}: there is no such directory")
    directory = write(name, kind, output)
    click.echo(f'{directory}: now  pip install -e "{directory}[test]" && pytest {directory}', err=True)
