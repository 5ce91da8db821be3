"""``align pipeline``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from alignkit.errors import ConfigError

from alignkit_eval.cli.scheduling import chosen, scheduling_options


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--from", "start", metavar="STAGE", help="Redo this stage and all later ones.")
@click.option("--stages", metavar="STAGE,STAGE", multiple=True, help="Run these stages alone.")
@click.option("--skip", metavar="STAGE,STAGE", multiple=True, help="Skip stages.")
@click.option("--output", metavar="DIR", help="Parent of the pipeline's directory (default: runs).")
@click.option(
    "--name", metavar="NAME", help="Name of the pipeline's directory (default: name in the file, or its file name)."
)
@click.option("--set", "sets", metavar="SECTION.KEY=VALUE", multiple=True, help="Set a key for every training stage.")
@scheduling_options
def pipeline(
    file: Path,
    start: str | None,
    stages: tuple[str, ...],
    skip: tuple[str, ...],
    output: str | None,
    name: str | None,
    sets: tuple[str, ...],
    **scheduling: Any,
) -> None:
    """Run the stages listed in FILE: data, training from another stage's model, evaluation, export, and those of plugins.

    Run the same command again to resume: finished stages are kept, an interrupted one is resumed.
    """
    from alignkit.display.console import Console
    from alignkit.settings import yaml_files
    from alignkit.system.quiet import quiet_libraries

    if not file.exists():
        raise ConfigError(f"{file}: no such file (align examples lists pipelines to copy)")
    yaml_files.read(file)  # says what is wrong with it before libraries are loaded

    from alignkit_eval.cli.compare import show
    from alignkit_eval.pipelines.pipeline import run_pipeline
    from alignkit_eval.pipelines.stages import as_list

    quiet_libraries()
    console = Console()
    given = chosen(**scheduling)
    if given == {"scheduler": "local", "options": {}}:
        given = {}  # this process carries the stages out
    skipped, only = (as_list(",".join(words)) for words in (skip, stages))
    done = run_pipeline(
        file, start=start, sets=sets, output=output, name=name, say=console.info, skip=skipped, only=only, **given
    )
    if done.comparison is not None:
        show(done.comparison)
    console.info(f"pipeline: {done.directory}    report: {done.directory / 'report.html'}")
