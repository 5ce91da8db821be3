"""``align plugins``, ``align plugins check`` and ``align new-plugin``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from alignkit.contract import registry
from alignkit.errors import ConfigError

from alignkit_commands.listing import print_columns
from alignkit_commands.options import into_directory
from alignkit_commands.scaffold import KINDS


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """List every installed plugin with its state and hooks.

    Each plugin is imported; failures are reported and do not affect the others.
    """
    if ctx.invoked_subcommand is not None:
        return
    from alignkit_commands.inventory import inventory

    found = inventory()
    if as_json:
        click.echo(json.dumps([plugin._asdict() for plugin in found], indent=2))
        return
    head = ("KIND", "NAME", "DISTRIBUTION", "STATE", "HOOKS OR CAUSE")
    rows = [(p.kind, p.name, f"{p.distribution} {p.version}", p.state, p.cause or ", ".join(p.hooks)) for p in found]
    print_columns([head, *rows])


@plugins.command("check")
@click.argument("name")
@click.option(
    "--kind", type=click.Choice(KINDS), help="Kind of the plugin, if plugins of several kinds have this name."
)
def check_plugin(name: str, kind: str | None) -> None:
    """Run the quick conformance tests on the installed plugin NAME (needs pytest)."""
    from alignkit_commands.inventory import quick_check

    if quick_check(name, kind):
        sys.exit(1)
    click.echo(f"{name}: the quick conformance tests pass; the plugin's own tests should run all of them", err=True)


@click.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), default="method", show_default=True, help="Kind of plugin.")
@into_directory("the package's directory")
def new_plugin(name: str, kind: str, output: Path) -> None:
    """Create the package alignkit-NAME with one working plugin: entry point, code, conformance tests, README and CI."""
    from alignkit_commands.scaffold import new_plugin as write

    same = [entry for group in registry.GROUPS for entry in registry.entries(group) if entry.kind == kind]
    if any(entry.built_in and entry.name == name for entry in same):
        raise ConfigError(f"{name} is a built-in {kind}, which would be used instead of yours: choose another name")
    directory = write(name, kind, output)
    click.echo(f'created {directory}; next: pip install -e "{directory}[test]" && pytest {directory}', err=True)
