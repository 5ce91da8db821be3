"""The options of commands that run in several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class _CountOrAuto(click.IntRange):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


_OPTIONS = {
    "--processes": ("N|auto", _CountOrAuto(1, 1024), "Processes on each node; auto: one per accelerator."),
    "--nodes": ("N", click.IntRange(1, 65536), "Machines that train together (default: as Slurm says, else 1)."),
    "--node-rank": ("I", click.IntRange(0), "Number of this machine, from 0 (default: as Slurm says)."),
    "--rendezvous": ("HOST:PORT", None, "Where the machines meet: an address of machine 0 (default: as Slurm says)."),
}


def launch_options(command: CommandT) -> CommandT:
    """Add the options of a command that runs in several processes, on one machine or more."""
    for name, (metavar, kind, text) in reversed(_OPTIONS.items()):
        command = click.option(name, metavar=metavar, type=kind, help=text)(command)
    return command
