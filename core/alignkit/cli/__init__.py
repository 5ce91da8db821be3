"""The command line. Its commands are plugins: ``--help`` and listings import none of them, a call imports one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from alignkit import __version__
from alignkit.cli.failures import State, complete_command, explain
from alignkit.contract import registry
from alignkit.contract.commands import Command
from alignkit.errors import AlignError, PluginError
from alignkit.system.distributed import rank, world_size
from alignkit.system.terminal import printable_streams
from alignkit.system.trust import command_line
from alignkit.system.worker import Ended, tell_end


class CommandGroup(click.Group):
    """A click group of the commands that installed packages declare under ``align.commands``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(registry.usable("align.commands"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command; shell completion leaves out those that cannot be imported."""
        try:
            entry = registry.find("align.commands", cmd_name)
            _require_one_process(registry.load(entry), cmd_name)
            command = registry.load_command(entry)
        except PluginError:
            if ctx.resilient_parsing:
                return None
            raise
        complete_command(command)
        if attach := registry.provided("align.reports", "completion" if ctx.resilient_parsing else "loading"):
            attach(command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an unexpected error names the package that it comes from."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            known = isinstance(error, AlignError | click.ClickException | click.exceptions.Exit | click.Abort)
            entry = registry.usable("align.commands").get(ctx.invoked_subcommand or "")
            if not known and entry is not None and not entry.built_in:
                error.add_note(f"in {entry}")
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands' summaries, importing their declarations only; a broken one is listed with the cause."""
        rows = []
        for name, entry in registry.usable("align.commands").items():
            try:
                rows.append((name, registry.load(entry).summary))
            except PluginError as error:
                rows.append((name, f"(broken: {error})"))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="align")
def align() -> None:
    """Align language models with preferences: one engine for all methods, one harness to compare them.

    Start with `align run --method orpo`: it trains the embedded demo, offline.
    """


complete_command(align)


def _require_one_process(command: Command, name: str) -> None:
    """Refuse a command that would be carried out once in every process that a launcher started; one of them says so."""
    if world_size() > 1 and not command.distributed:
        if rank() > 0:
            raise SystemExit(2)
        raise click.UsageError(
            f"align {name} runs in one process, and a launcher started {world_size()}: call it without the launcher"
        )


def run_command(arguments: Sequence[str]) -> int:
    """Run ``align ARGUMENTS``, print any error as one sentence on stderr, and return the exit code."""
    state = State(arguments=tuple(arguments))
    with printable_streams():
        try:
            Path.cwd()  # raises if it was deleted; libraries would end the process without a word
            _check_arguments(arguments)
            with command_line(arguments):
                result = align.main(list(arguments), prog_name="align", obj=state, standalone_mode=False)
        except BaseException as error:
            return explain(error, state)
    tell_end(Ended())
    return result if isinstance(result, int) else 0


def _check_arguments(arguments: Sequence[str]) -> None:
    """Raise for an argument that is empty, or not UTF-8: as a name it could not be written into a record or page."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if not argument.strip() and before not in ("--prompt", "--system"):
            raise click.UsageError(
                f"an argument{f' of {before}' * before.startswith('-')} is empty: is a variable unset?"
            )
        if not argument.isprintable() and any("\udc80" <= character <= "\udcff" for character in argument):
            shown = argument.encode(errors="surrogateescape").decode(errors="backslashreplace")
            raise click.UsageError(f"the argument {shown} is not UTF-8: rename the file, or write the text in UTF-8")
