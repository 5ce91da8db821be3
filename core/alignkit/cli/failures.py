"""The end of a command: errors as one sentence on stderr, a traceback only with ``--debug``, and the exit code."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from alignkit.errors import AlignError, InterruptedRun, described, readable
from alignkit.system import trust
from alignkit.system.files import os_fault

FAILED = 1
FAULT = 2
LARGEST = 2**32 - 1


@dataclass
class State:
    """Options that apply to the whole command line."""

    debug: bool = False


def _set_debug(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    state = ctx.ensure_object(State)
    state.debug = state.debug or value


_DEBUG = click.Option(
    ["--debug"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set_debug,
    help="Show tracebacks of errors.",
)


_TRUST = click.Option(
    ["--trust"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, parameter, value: trust.give(value),
    help="Run the code that the named files ask for (docs/security.md); asked once for the same code.",
)


def complete_command(command: click.Command) -> None:
    """Add ``--debug``, and ``--trust`` where files are named, to a command and its subcommands, and bound their numbers."""
    for option in (_DEBUG, _TRUST):
        named = {name for parameter in command.params for name in parameter.opts}
        if option is _DEBUG or any(isinstance(parameter, click.Argument) for parameter in command.params):
            command.params += [] if option.opts[0] in named else [option]
    for parameter in command.params:
        numeric = isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType)
        if numeric and parameter.callback is None:
            parameter.callback = _bounded
    for subcommand in getattr(command, "commands", {}).values():
        complete_command(subcommand)


def _bounded(_ctx: click.Context, _parameter: click.Parameter, value: Any) -> Any:
    """Return a number that libraries can compute with; click takes any, NaN and infinity included."""
    if isinstance(value, int | float) and not abs(value) <= LARGEST:
        raise click.BadParameter(f"{value} is not a number between {-LARGEST:,} and {LARGEST:,}.")
    return value


def explain(error: BaseException, state: State) -> int:
    """Print what went wrong on stderr and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if state.debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, click.exceptions.Abort | KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return 128 + getattr(error, "number", 2)
    if isinstance(error, click.UsageError):
        click.UsageError(readable(error.format_message()), error.ctx).show()
        return error.exit_code
    head = "Error"
    if isinstance(error, InterruptedRun):
        head, message, advice, code = "Interrupted", str(error), "", error.exit_code
    elif isinstance(error, OSError) and (fault := os_fault(error)):
        message, advice, code = fault, "", FAULT
    elif isinstance(error, click.ClickException):
        message, advice, code = error.format_message(), "", error.exit_code
    elif isinstance(error, AlignError):
        message, advice, code = str(error), "", error.exit_code
    else:
        message = described(error)
        advice, code = "" if state.debug else " (run again with --debug for the traceback)", FAILED
    if notes := getattr(error, "__notes__", []):
        message += f" ({'; '.join(notes)})"
    try:
        Path.cwd()
    except FileNotFoundError:
        message, advice, code = "the current directory has been deleted: change to another one", "", FAULT
    with suppress(OSError):  # the terminal may be gone
        click.echo(f"{head}: {readable(message)}{advice}", err=True)
    return code
