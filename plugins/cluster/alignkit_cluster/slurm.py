"""``align slurm``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import click
from alignkit import RunConfig, settings
from alignkit.errors import ConfigError

from alignkit_cluster.strategies import distribute

_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d\d?(:\d\d){0,2}")
_WORD = re.compile(r"[\w.,:@+%/=-]+")

_SCRIPT = """\
#!/bin/bash
{directives}

# Slurm sends SIGTERM two minutes before the time limit: the run saves a checkpoint, and `align resume` continues it.
set -euo pipefail
srun --kill-on-bad-exit=1 {command}
"""

_OURS = ("processes", "nodes", "node_rank", "rendezvous", "dry_run", "measure")
"""Options of ``align run`` that the script has itself, or that no job is for."""


def _resolved(config: Path, options: Sequence[str], processes: int, nodes: int) -> RunConfig:
    """Return what the job will make of the file and the options: a mistake in them would cost a place in the queue."""
    here = click.get_current_context()
    group = cast("click.Group", here.find_root().command)
    command = cast("click.Command", group.get_command(here.find_root(), "run"))
    given = command.make_context("run", [str(config), *options], parent=here.find_root()).params
    for name in _OURS:
        if given.pop(name) not in (None, False):
            raise ConfigError(f"--{name.replace('_', '-')} does not belong after --: align slurm writes the script")
    del given["change"]
    given |= {"processes": processes, "nodes": nodes}
    return settings.resolve(given.pop("config"), **given).config


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("options", nargs=-1, metavar="[-- OPTIONS OF ALIGN RUN]")
@click.option("--nodes", metavar="N", type=click.IntRange(1, 65536), default=1, show_default=True, help="Machines.")
@click.option("--gpus", metavar="N", type=click.IntRange(0, 64), required=True, help="GPUs of each; 0: use its CPUs.")
@click.option(
    "--processes", metavar="N", type=click.IntRange(1, 1024), help="Processes on each (default: one per GPU)."
)
@click.option("--cpus", metavar="N", type=click.IntRange(1), help="CPU cores of each machine (default: 8 per process).")
@click.option("--time", "limit", metavar="T", help="Time limit: minutes, H:MM:SS or D-HH:MM:SS (default: Slurm's).")
@click.option("--partition", metavar="P", help="Partition (default: Slurm's).")
@click.option("--account", metavar="A", help="Account (default: Slurm's).")
@click.option("--name", metavar="NAME", help="Name of the job (default: the file's).")
def slurm(
    config: Path,
    options: tuple[str, ...],
    nodes: int,
    gpus: int,
    processes: int | None,
    cpus: int | None,
    limit: str | None,
    partition: str | None,
    account: str | None,
    name: str | None,
) -> None:
    """Print a batch script for Slurm that trains as CONFIG says: align slurm CONFIG.yaml --nodes 4 --gpus 8 > job.sh

    The configuration and the options are checked first. Every machine runs one `align run`, which starts its processes and finds the others.
    """
    each = processes or max(gpus, 1)
    distribute(_resolved(config, options, processes=each, nodes=nodes))  # refuses a strategy that cannot be used
    if limit is not None and not _TIME.fullmatch(limit):
        raise ConfigError(f"--time is {limit}: write minutes, H:MM:SS or D-HH:MM:SS")
    name = name or re.sub(r"[^\w.-]", "-", config.stem)
    words = {"--name": name, "--partition": partition, "--account": account}
    for option, word in words.items():
        if word is not None and not _WORD.fullmatch(word):
            raise ConfigError(f"{option} is {word}: use letters, digits and . , : @ + % / = - _")
    asked = {
        "job-name": name,
        "output": f"{name}-%j.log",
        "nodes": nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus or None,
        "cpus-per-task": cpus or 8 * each,
        "time": limit,
        "partition": partition,
        "account": account,
        "signal": "TERM@120",
    }
    directives = "\n".join(f"#SBATCH --{key}={value}" for key, value in asked.items() if value is not None)
    command = ["align", "run", str(config), "--nodes", str(nodes), "--processes", str(each), *options]
    click.echo(_SCRIPT.format(directives=directives, command=shlex.join(command)), nl=False)
