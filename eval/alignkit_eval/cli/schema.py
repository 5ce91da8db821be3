"""``align schema``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("method", required=False)
@click.option(
    "--attach",
    "files",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Begin this YAML file with the line by which editors find the schema, and print nothing.",
)
def schema(method: str | None, files: tuple[Path, ...]) -> None:
    """Print the JSON schema of a configuration file, for editors that validate and complete YAML.

    With METHOD, of a file for that method; without, of a configuration for any installed method, or a pipeline. An editor with
    a YAML language server reads the schema of a file that --attach has prepared: docs/editors.md.
    """
    from alignkit.settings import read

    from alignkit_eval.schemas.attach import attach
    from alignkit_eval.schemas.files import run_schema, whole_schema

    for file in files:
        read(file)  # refuses what is not YAML
        attach(file, method)
    if not files:
        click.echo(json.dumps(run_schema(method) if method else whole_schema(), indent=2))
