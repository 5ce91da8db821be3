"""``align schema``."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("method")
def schema(method: str) -> None:
    """Print the JSON schema of METHOD's configuration, for editors that validate and complete YAML."""
    from alignkit import settings

    click.echo(json.dumps(settings.schema(method), indent=2))
