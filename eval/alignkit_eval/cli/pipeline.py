"""``align pipeline``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alignkit_eval.cli.scheduling import chosen, scheduling_options


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--from", "start", metavar="STAGE", help="Redo this stage and all later ones.")
@click.option("--skip", metavar="STAGE", multiple=True, help="Skip a stage.")
@click.option("--output", metavar="DIR", help="Parent of the pipeline's directory (default: runs).")
@click.option(
    "--name", metavar="NAME", help="Name of the pipeline's directory (default: name in the file, or its file name)."
)
@click.option("--set", "sets", metavar="SECTION.KEY=VALUE", multiple=True, help="Set a key for every training stage.")
@scheduling_options
def pipeline(
    file: Path,
    start: str | None,
    skip: tuple[str, ...],
    output: str | None,
    name: str | None,
    sets: tuple[str, ...],
    **scheduling: Any,
) -> None:
    """Run the stages listed in FILE: training from another stage's model, evaluation, and export.

    Run the same command again to resume: finished stages are kept, an interrupted one is resumed.
    """
    from alignkit.display.console import Console
    from alignkit.system.quiet import quiet_libraries

    from alignkit_eval.cli.compare import show
    from alignkit_eval.pipelines.pipeline import run_pipeline

    quiet_libraries()
    console = Console()
    given = chosen(**scheduling)
    if given == {"scheduler": "local", "options": {}}:
        given = {}  # this process carries the stages out
    done = run_pipeline(file, start=start, skip=skip, sets=sets, output=output, name=name, say=console.info, **given)
    if done.comparison is not None:
        show(done.comparison)
    console.info(f"pipeline: {done.directory}    report: {done.directory / 'report.html'}")
