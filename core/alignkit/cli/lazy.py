"""A group of commands that imports a command only when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import click


class LazyCommand(NamedTuple):
    """Where a command is (``module:object``), and the line that stands for it in the group's help."""

    target: str
    summary: str


class LazyGroup(click.Group):
    """A click group whose commands are :class:`LazyCommand`; its help is written from their summaries."""

    def __init__(self, *arguments: Any, commands: Mapping[str, LazyCommand], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lazy = dict(commands)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names in the order they were declared."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in self.lazy:
            return None
        module, _, name = self.lazy[cmd_name].target.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that was called, suggesting the closest one where there is none."""
        from alignkit.errors import suggest

        if args and args[0] not in self.lazy and not args[0].startswith("-"):
            ctx.fail(f'no such command "{args[0]}"{suggest(args[0], list(self.lazy))}')
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands' summaries without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in self.lazy.items()])
