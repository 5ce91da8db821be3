"""``align atlas``."""

from __future__ import annotations

from typing import Any

import click
from alignkit.errors import ConfigError

from alignkit_eval.cli.scheduling import chosen, scheduling_options


@click.command()
@click.option("--only", metavar="NAME,NAME", help="Objectives to train (default: all).")
@click.option("--list", "listed", is_flag=True, help="List the objectives and train nothing.")
@click.option("--seeds", metavar="N,N", default="0,1,2", show_default=True, help="Seeds to train every objective with.")
@click.option("--model", metavar="M", help="Model or adapter directory, hub id, run directory, or demo.")
@click.option("--data", metavar="D", help="Preference pairs: file, saved data set, hub id, or demo.")
@click.option("--eval-data", metavar="D", help="Source of the held-out rows.")
@click.option(
    "--margin", type=float, default=0.03, show_default=True, help="Difference of accuracies that counts as none."
)
@click.option("--output", metavar="DIR", default="runs", show_default=True, help="Parent of the atlas's directory.")
@click.option("--name", metavar="NAME", default="atlas", show_default=True, help="Name of the atlas's directory.")
@click.option("--set", "sets", metavar="KEY=VALUE", multiple=True, help="Any other key, for every objective.")
@scheduling_options
def atlas(
    only: str | None,
    listed: bool,
    seeds: str,
    model: str | None,
    data: str | None,
    eval_data: str | None,
    margin: float,
    output: str,
    name: str,
    sets: tuple[str, ...],
    **scheduling: Any,
) -> None:
    """Train every objective on the same pairs, and mark every two of them better, equivalent or undecided.

    The same command resumes an interrupted atlas, and further objectives (--only) and seeds are added to it. It writes atlas.html, atlas.json, papers.md, and a recipe of each objective.
    """
    from alignkit.display.console import Console
    from alignkit.system.quiet import quiet_libraries

    from alignkit_eval.atlas.atlas import atlas as make
    from alignkit_eval.atlas.atlas import pair_outcomes
    from alignkit_eval.atlas.objectives import objectives
    from alignkit_eval.atlas.page import verdict
    from alignkit_eval.cli.sweep import seeds_of
    from alignkit_eval.sweeps.sweep import failure

    names = [word.strip() for word in (only or "").split(",") if word.strip()]
    if not 0 < margin < 1:
        raise ConfigError(f"--margin {margin:g}: write a number between 0 and 1")
    if listed:
        for objective in objectives(names):
            click.echo(f"{objective.name}\t{objective.claim}")
        return
    quiet_libraries()
    console = Console()
    about: dict[str, Any] = {"model": model, "data": data, "eval_data": eval_data, "sets": sets}
    places: dict[str, Any] = {"output": output, "name": name, "say": console.info}
    found = make(only=names, seeds=seeds_of(seeds), margin=margin, **about, **places, **chosen(**scheduling))
    outcomes, models = (pair_outcomes(found.comparison, models=fixed) for fixed in (False, True))
    console.info(verdict(outcomes, models, margin))
    console.info(f"atlas: {found.directory / 'atlas.html'}")
    if error := failure(found.sweep):
        raise error
