"""``align pipeline``."""

from __future__ import annotations

from pathlib import Path

import click
from alignkit.cli.failures import debug_option


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--from", "start", metavar="STAGE", help="Redo this stage and all after it.")
@click.option("--skip", metavar="STAGE", multiple=True, help="Leave a stage out.")
@click.option("--output", metavar="DIR", help="Parent of the pipeline's directory (default: runs).")
@click.option("--name", metavar="NAME", help="Name of the pipeline's directory (default: the file's).")
@click.option("--set", "sets", metavar="SECTION.KEY=VALUE", multiple=True, help="A key of every training stage.")
@debug_option
def pipeline(
    file: Path, start: str | None, skip: tuple[str, ...], output: str | None, name: str | None, sets: tuple[str, ...]
) -> None:
    """Train in stages: FILE lists them, each starting from another's model; also evaluation and export.

    The same command goes on where it was stopped: finished stages are kept, an interrupted one is resumed.
    """
    from alignkit.display.console import Console
    from alignkit.system.quiet import quiet_libraries

    from alignkit_eval.cli.compare import show
    from alignkit_eval.pipelines.pipeline import run_pipeline

    quiet_libraries()
    console = Console()
    done = run_pipeline(file, start=start, skip=skip, sets=sets, output=output, name=name, say=console.info)
    if done.comparison is not None:
        show(done.comparison)
    console.info(f"pipeline: {done.directory}    report: {done.directory / 'report.html'}")
