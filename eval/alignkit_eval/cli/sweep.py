"""``align sweep``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from alignkit.errors import ConfigError

from alignkit_eval.cli.scheduling import chosen, keys_of, scheduling_options

if TYPE_CHECKING:
    from alignkit.display.console import Console

    from alignkit_eval.comparison.looks import Race


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--method", metavar="NAME", help="Method to train with (or --over method=sft,dpo).")
@click.option(
    "--over", metavar="KEY=V1,V2", multiple=True, help="Values to sweep: lambda=0,0.1,1 or train.learning_rate=..."
)
@click.option("--seeds", metavar="N,N", default="0", show_default=True, help="Seeds to train every combination with.")
@click.option("--model", metavar="M", help="Model or adapter directory, hub id, run directory, or demo.")
@click.option("--data", metavar="D", help="File, saved data set, hub id, or demo.")
@click.option("--eval-data", metavar="D", help="Source of the held-out rows.")
@click.option("--output", metavar="DIR", default="runs", show_default=True, help="Parent of the sweep's directory.")
@click.option("--name", metavar="NAME", help="Name of the sweep's directory.")
@click.option("--set", "sets", metavar="KEY=VALUE", multiple=True, help="Any other key, for every cell.")
@click.option(
    "--resume", metavar="[DIR]", is_flag=False, flag_value="", help="Resume the sweep in DIR, or with --name."
)
@click.option(
    "--race",
    is_flag=True,
    help="Compare the arms at planned shares of training (25, 50, 75 %), and stop those that are significantly worse.",
)
@click.option(
    "--race-set",
    "race_sets",
    metavar="KEY=VALUE",
    multiple=True,
    help="Setting of the race: rungs=[0.2,0.5], alpha=0.05, spending=obrien-fleming, objective=accuracy_sum.",
)
@click.option(
    "--revive", metavar="ARM", multiple=True, help="With --resume: train an arm that the race stopped to its end."
)
@click.option("--json", "as_json", is_flag=True, help="Print sweep.json.")
@scheduling_options
def sweep(
    config: Path | None,
    method: str | None,
    over: tuple[str, ...],
    seeds: str,
    model: str | None,
    data: str | None,
    eval_data: str | None,
    output: str,
    name: str | None,
    sets: tuple[str, ...],
    resume: str | None,
    race: bool,
    race_sets: tuple[str, ...],
    revive: tuple[str, ...],
    as_json: bool,
    **scheduling: Any,
) -> None:
    """Train a grid of settings and seeds, compare the cells on the same items, and plot the results.

    Resume an interrupted sweep with --resume, or with the same command and --name. With --name of a sweep that exists, further values
    and seeds are added to it: what is finished is kept.
    """
    from alignkit.display.console import Console
    from alignkit.settings import yaml_files
    from alignkit.system.quiet import quiet_libraries

    if config is not None:
        yaml_files.read(config)  # says what is wrong with it before libraries are loaded

    from alignkit_eval.cli.compare import show
    from alignkit_eval.sweeps import sweep as sweeping
    from alignkit_eval.sweeps.grid import parse_over

    quiet_libraries()
    console = Console()
    if resume is not None and not over:
        given = {
            "CONFIG": config,
            "--method": method,
            "--model": model,
            "--data": data,
            "--eval-data": eval_data,
            "--set": sets,
            "--race": race,
            "--race-set": race_sets,
        }
        directory = _directory_to_resume(resume, output, name, given)
        done = sweeping.resume(directory, revive=revive, **chosen(**scheduling), say=console.info)
    else:
        if not over:
            raise ConfigError("nothing to sweep: give --over KEY=V1,V2")
        if revive:
            raise ConfigError("--revive applies to a race that was carried out: align sweep --resume DIR --revive ARM")
        if race_sets and not race:
            raise ConfigError("--race-set has no effect without --race")
        done = sweeping.sweep(
            parse_over(over),
            method=method,
            config=config,
            model=model,
            data=data,
            eval_data=eval_data,
            sets=sets,
            seeds=seeds_of(seeds),
            race=keys_of(race_sets, "--race-set") if race else None,
            **chosen(**scheduling),
            output=output,
            name=name if name is not None or not resume else Path(resume).name,
            say=console.info,
        )
    if done.race is not None and not as_json:
        show_race(done.race, console)
    if as_json:
        click.echo(json.dumps(json.loads((done.directory / "sweep.json").read_text()), indent=2))
    elif done.comparison is not None:
        show(done.comparison)
    for note in done.notes:
        console.info(f"note: {note}")
    console.info(f"sweep: {done.directory}")
    if error := sweeping.failure(done):
        raise error


def _directory_to_resume(resume: str, output: str, name: str | None, given: Mapping[str, object]) -> Path:
    """Return the directory of the sweep to resume; raises :class:`ConfigError` for options it does not take (``given``)."""
    if idle := [option for option, value in given.items() if value]:
        raise ConfigError(f"{idle[0]} has no effect with --resume, which takes the sweep's own settings: remove it")
    if not resume and name is None:
        raise ConfigError("--resume needs a sweep: give --resume DIR, or --name NAME")
    return Path(resume) if resume else Path(output) / str(name)


def show_race(race: Race, console: Console) -> None:
    """Print who left a race when, why, and what was saved."""
    from alignkit_eval.report.race import departure_line, race_sentence

    console.info(race_sentence(race))
    for look, gone in race.departures:
        console.info(
            f"  at {look.rung:.0%}, {departure_line(look, gone)}" + (" (revived)" if gone.arm in race.revived else "")
        )


def seeds_of(text: str) -> list[int]:
    words = text.split(",")
    wrong = next((word for word in words if not word.strip().isdecimal() or len(word) > 10), None)
    if wrong is None:
        return [int(word) for word in words]
    named = f"{wrong[:20]!r}" if wrong.strip() else "an empty one"
    raise ConfigError(f"--seeds: write whole numbers from 0 to 4294967295 separated by commas, e.g. 0,1,2; got {named}")
