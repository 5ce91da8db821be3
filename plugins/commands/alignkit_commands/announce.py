"""The first line of a command that loads large libraries: it is printed before they are imported, which takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from types import ModuleType

import click
from alignkit.system.distributed import rank

from alignkit_commands.elsewhere import explain

LARGE = frozenset({"scipy", "torch", "transformers"})
"""Packages whose import takes longer than a user waits without a word."""


class Announcement(MetaPathFinder):
    """Finds no module: says that a command loads libraries when the first large one is imported."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname in LARGE:
            withdraw()
            context = click.get_current_context(silent=True)
            if context is not None:
                with suppress(OSError):  # the terminal may be gone
                    click.echo(f"{context.command_path}: loading libraries", err=True)


def announce(command: click.Command) -> None:
    """Have the command that is called say that it loads libraries, once, on the first process, unless it :func:`withdraw` that before.

    What is written as for another library is answered with what it is here (:mod:`alignkit_commands.elsewhere`).
    """
    explain(command)
    if rank() == 0 and not LARGE & sys.modules.keys():
        sys.meta_path.insert(0, Announcement())
        click.get_current_context().call_on_close(withdraw)


def withdraw() -> None:
    """Let libraries be loaded without a word: the command has printed its first line."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Announcement)]
