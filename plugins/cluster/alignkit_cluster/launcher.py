"""The decision to run a command in several processes, and the end of one that did."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click
from alignkit import RunConfig
from alignkit.contract import registry
from alignkit.errors import AlignError, ConfigError, readable
from alignkit.rundir.directory import RunDir
from alignkit.settings.strategies import processes_of
from alignkit.system.distributed import local_world_size, world_size

from alignkit_cluster.nodes import Nodes, refuse_copies, slurm_nodes
from alignkit_cluster.strategies import distribute
from alignkit_cluster.workers import Verdict, launch


def start(
    config: RunConfig,
    arguments: Sequence[str],
    *,
    processes: int | str | None = None,
    nodes: int | None = None,
    node_rank: int | None = None,
    rendezvous: str | None = None,
) -> int | None:
    """Run ``align ARGUMENTS`` in as many workers as are asked for and return the exit code.

    None: this process is the only one, or one of those that a launcher started, and carries the command out itself.
    """
    if "RANK" in os.environ:
        started = local_world_size(), world_size() // local_world_size()
        for option, asked, found in zip(("processes", "nodes"), (processes, nodes), started, strict=True):
            if asked not in (None, "auto", found):
                raise ConfigError(f"--{option} is {asked}, but the launcher of this process started {found}")
        return None
    refuse_copies()
    where = _nodes(config.run.nodes if nodes is None else nodes, nodes, node_rank, rendezvous)
    config.run.nodes = where.number
    distribute(config)
    if (total := processes_of(config)) == 1:
        return None
    if config.run.engine != "torch":  # which trains in any number, and would take its memory here as well
        registry.open_engine(config).check_processes(total)
    if where.number > 1:
        click.echo(f"node {where.rank} of {where.number}, meeting at {where.rendezvous}", err=True)
    return conclude(launch(arguments, total // where.number, where))


def _nodes(count: int, given: int | None, rank: int | None, rendezvous: str | None) -> Nodes:
    """Return the nodes as options and configuration say; what they leave open, as Slurm's environment says."""
    slurm = slurm_nodes()
    if slurm is not None and count == 1 and given is None:
        count = slurm.number
    if count == 1:
        if rank or rendezvous:
            raise ConfigError("--node-rank and --rendezvous are for several nodes: add --nodes N")
        return Nodes()
    found = slurm or Nodes(rank=-1)
    found = Nodes(count, found.rank if rank is None else rank, rendezvous or found.rendezvous, found.job)
    if found.rank < 0 or not found.rendezvous:
        raise ConfigError(
            f"{count} nodes need --node-rank I (0 to {count - 1}) and --rendezvous HOST:PORT on every node; srun gives both"
        )
    if found.rank >= count:
        raise ConfigError(f"--node-rank is {found.rank}, but {count} nodes are numbered from 0 to {count - 1}")
    if not re.fullmatch(r"\S+:\d{1,5}", found.rendezvous) or not 0 < int(found.rendezvous.rpartition(":")[2]) < 65536:
        raise ConfigError(f"--rendezvous is {found.rendezvous}: write HOST:PORT, e.g. node1:29400")
    return found


def conclude(verdict: Verdict) -> int:
    """Print how the workers ended, complete the run's record where no worker could, and return the exit code."""
    message = verdict.message
    if verdict.run is not None and verdict.code:
        with suppress(AlignError):  # the record is damaged
            message = _complete(RunDir(verdict.run), verdict)
    if verdict.traceback:
        click.echo(verdict.traceback, err=True, nl=False)
    if message:
        click.echo(f"{verdict.head}: {readable(message)}", err=True)
    return verdict.code


def _complete(run: RunDir, verdict: Verdict) -> str:
    """Write into the record how the run ended if that is not in it, and return the message, with how to resume."""
    message, over = verdict.message, run.locked_by() is None  # else its first process, on another machine, goes on
    if not run.record.is_file():
        if over and not any(path.exists() for path in (run.checkpoints, run.model)):
            run.discard()  # it did not begin to train
        return message
    if not verdict.unrecorded and not (over and run.status == "running"):
        return message
    if any(run.checkpoints.glob("checkpoint-*")) and "align resume" not in message:
        message += f"; resume with: align resume {shlex.quote(str(_relative(run.path)))}"
    status = "interrupted" if verdict.head == "Interrupted" else "failed"
    try:
        run.update_record(status=status, error=message)
    except OSError:
        run.overwrite_status(status)
    return message


def _relative(path: Path) -> Path:
    """Return a path as the user would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
