"""``align pipeline``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--from", "start", metavar="STAGE", help="Redo this stage and all later ones.")
@click.option("--skip", metavar="STAGE", multiple=True, help="Skip a stage.")
@click.option("--output", metavar="DIR", help="Parent of the pipeline's directory (default: runs).")
@click.option(
    "--name", metavar="NAME", help="Name of the pipeline's directory (default: name in the file, or its file name)."
)
@click.option("--set", "sets", metavar="SECTION.KEY=VALUE", multiple=True, help="Set a key for every training stage.")
def pipeline(
    file: Path, start: str | None, skip: tuple[str, ...], output: str | None, name: str | None, sets: tuple[str, ...]
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
    done = run_pipeline(file, start=start, skip=skip, sets=sets, output=output, name=name, say=console.info)
    if done.comparison is not None:
        show(done.comparison)
    console.info(f"pipeline: {done.directory}    report: {done.directory / 'report.html'}")
