"""``align run`` and ``align resume``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from alignkit.contract import registry
from alignkit.system.distributed import rank
from alignkit.system.terminal import from_here

from alignkit_commands.announce import withdraw

if TYPE_CHECKING:
    from alignkit.config import RunConfig

_launch_options: Callable[[Callable[..., Any]], Callable[..., Any]] = registry.load(
    registry.find("align.launchers", "options")
)


def _launch(config: RunConfig, arguments: Sequence[str], **where: Any) -> int | None:
    """Carry out ``align ARGUMENTS`` in several processes and return the exit code; None: this process shall do it."""
    code: int | None = registry.load(registry.find("align.launchers", "torch"))(config, arguments, **where)
    return code


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--method", metavar="NAME", help="Training method (align methods lists them).")
@click.option("--model", metavar="M", help="Model or adapter directory, run directory, hub id, or demo (default).")
@click.option("--data", metavar="D", help="File, directory, URL, saved data set, hub id, or demo (default).")
@click.option("--eval-data", metavar="D", help="Held-out rows to evaluate on (default: 10 % of --data).")
@click.option("--output", metavar="DIR", help="Parent of the run directory (default: runs).")
@click.option("--name", metavar="NAME", help="Name of the run directory (default: method, date and time).")
@click.option("--seed", metavar="N", type=click.IntRange(min=0), help="Random seed (default: 0).")
@click.option("--set", "sets", metavar="KEY=VALUE", multiple=True, help="Any other key: lambda=0.1, train.max_steps=9.")
@click.option("--strategy", metavar="NAME", help="What processes share: auto, ddp, fsdp, zero2 or zero3.")
@click.option("--engine", metavar="NAME", help="What scores and updates the model: torch (default), mlx, ...")
@_launch_options
@click.option("--resume", is_flag=True, help="Resume the interrupted run called --name.")
@click.option("--change", is_flag=True, help="With --resume: accept settings that differ, and record them.")
@click.option("--dry-run", is_flag=True, help="Check configuration and data and print the plan, without training.")
@click.option(
    "--measure", is_flag=True, help="With --dry-run: try three steps and one evaluation batch; time, memory, price."
)
@click.pass_obj
def run(
    state: Any, /, config: Path | None, resume: bool, change: bool, dry_run: bool, measure: bool, **options: Any
) -> int | None:
    """Train a model with one method and evaluate it before and after.

    Every option is also a key of the file CONFIG (YAML); the command line overrides the file, the file the method's defaults.
    Without a model and data, the embedded demo is trained, offline.
    """
    if measure and not dry_run:
        raise click.UsageError("--measure belongs to --dry-run: add it, or leave --measure out")
    where = {name: options.pop(name) for name in ("node_rank", "rendezvous")}
    from alignkit.settings import resolve  # imports pydantic, which the help does not need

    resolved = resolve(config, resume=resume, loading=_say, **options)
    where |= {name: options[name] for name in ("processes", "nodes")}
    if (measure or not dry_run) and (code := _launch(resolved.config, state.arguments, **where)) is not None:
        return code
    for note in resolved.notes:
        _say(f"Note: {note}")
    if measure:
        _measure(resolved.config)
        return None
    from alignkit.runs.api import run as start

    done = start(resolved.config, resume=resume, change=change, dry_run=dry_run)
    if done is not None:
        _write_report(done.directory)
    return None


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--set", "sets", metavar="KEY=VALUE", multiple=True, help="Another value of a setting; needs --change.")
@click.option("--change", is_flag=True, help="Accept settings that differ from the run's, and record them.")
@_launch_options
@click.pass_obj
def resume(state: Any, /, run: Path, sets: tuple[str, ...], change: bool, **where: Any) -> int | None:
    """Resume the interrupted run in directory RUN from its last complete checkpoint.

    A finished run is trained further with --set train.max_steps=N --change.
    """
    from alignkit.rundir.directory import RunDir

    sets += tuple(f"run.{key}={where[key]}" for key in ("processes", "nodes") if where[key] is not None)
    if (file := RunDir(run).config).is_file():
        from alignkit.settings import resolve

        config = resolve(file, sets=sets, resume=True, loading=_say).config
        if (code := _launch(config, state.arguments, **where)) is not None:
            return code
    from alignkit.runs.api import resume as resume_run

    _write_report(resume_run(run, sets=sets, change=change).directory)
    return None


def _say(line: str) -> None:
    """Print a line on the first process."""
    withdraw()
    if rank() == 0:
        click.echo(from_here(line), err=True)


def _measure(config: RunConfig) -> None:
    """Print the dry run with a trial, if an installed package provides one; every process of the run calls this."""
    from alignkit.contract.registry import provided
    from alignkit.errors import ConfigError
    from alignkit.settings import check_config
    from alignkit.system.quiet import quiet_libraries

    quiet_libraries()
    if (describe := provided("align.reports", "dry-run")) is None:
        raise ConfigError("--dry-run: no installed package describes a run (entry-point group align.reports)")
    describe(check_config(config), measure=True)


def _write_report(directory: Path) -> None:
    """Write the report of a finished run, on the first process, if an installed package provides one."""
    from alignkit.contract.registry import provided
    from alignkit.errors import AlignError
    from alignkit.rundir.directory import RunDir

    if rank() != 0 or not RunDir(directory).read_record().get("config", {}).get("run", {}).get("plots"):
        return
    try:
        if (write := provided("align.reports", "run")) is not None:
            _say(f"report: {write(directory)}")
    except AlignError as error:
        click.echo(f"Note: no report was written: {error}", err=True)
