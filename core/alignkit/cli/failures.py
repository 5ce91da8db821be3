"""The end of a command: errors as one sentence on stderr, a traceback only with ``--debug``, and the exit code."""

from __future__ import annotations

import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from alignkit.errors import AlignError, InterruptedRun, described, memory_fault, readable
from alignkit.system import trust
from alignkit.system.distributed import rank
from alignkit.system.files import os_fault
from alignkit.system.worker import Ended, is_worker, lost_connection, tell_end

FAILED = 1
FAULT = 2
LARGEST = 2**32 - 1


@dataclass
class State:
    """Options that apply to the whole command line."""

    debug: bool = False
    arguments: tuple[str, ...] = ()
    """The words of the command line."""


def _set_debug(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    state = ctx.ensure_object(State)
    state.debug = state.debug or value


_DEBUG = click.Option(
    ["--debug"], is_flag=True, is_eager=True, expose_value=False, callback=_set_debug, help="Show tracebacks of errors."
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
    """Add ``--debug``, and ``--trust`` where files are named, to a command and its subcommands; bound numbers, refuse repetitions."""
    for option in (_DEBUG, _TRUST):
        named = {name for parameter in command.params for name in parameter.opts}
        if option is _DEBUG or any(isinstance(parameter, click.Argument) for parameter in command.params):
            command.params += [] if option.opts[0] in named else [option]
    for parameter in command.params:
        numeric = isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType)
        if numeric and parameter.callback is None:
            parameter.callback = _bounded
    command.parse_args = partial(_parse_once, command)  # type: ignore[method-assign]
    for subcommand in getattr(command, "commands", {}).values():
        complete_command(subcommand)


def _parse_once(command: click.Command, ctx: click.Context, args: list[str]) -> list[str]:
    """Parse arguments; refuse an option of one value that is given twice, and say of a key that its last value holds."""
    if not ctx.resilient_parsing:
        given, _, order = command.make_parser(ctx).parse_args([*args])
        for option, times in Counter(one for one in order if isinstance(one, click.Option)).items():
            form, name = str(option.metavar), option.opts[0]
            if option.multiple and "=" in form and "," not in form:
                keys = Counter(str(text).partition("=")[0] for text in given[option.name or ""])
                for key in [key for key, count in keys.items() if count > 1 and rank() == 0 and not is_worker()]:
                    click.echo(f"note: {name} {key}=... is given {keys[key]} times: the last one holds", err=True)
            elif times > 1 and not (option.multiple or option.is_flag or option.count):
                how = f": write its values as {name} {form}." if "," in form else ", and takes one value."
                raise click.UsageError(f"{name} is given {times} times{how}", ctx)
    return type(command).parse_args(command, ctx, args)


def _bounded(_ctx: click.Context, _parameter: click.Parameter, value: Any) -> Any:
    """Return a number that libraries can compute with; click takes any, NaN and infinity included."""
    if isinstance(value, int | float) and not abs(value) <= LARGEST:
        raise click.BadParameter(f"{value} is not a number between {-LARGEST:,} and {LARGEST:,}.")
    return value


def explain(error: BaseException, state: State) -> int:
    """Print what went wrong on stderr, on the process that it comes from, and return the exit code.

    A worker leaves both to its launcher.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    trace = "".join(traceback.format_exception(error)) if state.debug else ""
    head, message, code = _described(error, state)
    origin = getattr(error, "origin", rank())
    if is_worker():
        # A signal that stopped every process at the same step has no cause; one that reached this process alone has.
        together = isinstance(error, InterruptedRun) and error.__cause__ is None
        tell_end(Ended(code, head, message, trace, together, lost_connection(error), origin))
        return 0 if together else code
    if origin != rank():
        return code
    with suppress(OSError):  # the terminal may be gone
        click.echo(trace, err=True, nl=False)
        if isinstance(error, click.UsageError):
            click.UsageError(message, error.ctx).show()
        else:
            where = f"rank {rank()}: " if rank() else ""
            click.echo(f"{head}: {where}{message}" if head else message, err=True)
    return code


def _described(error: BaseException, state: State) -> tuple[str, str, int]:
    """Return what kind of end an error is, its sentence, and the exit code."""
    if isinstance(error, click.exceptions.Abort | KeyboardInterrupt):
        return "", "Interrupted.", 128 + getattr(error, "number", 2)
    if isinstance(error, click.UsageError):
        return "Error", readable(error.format_message()), error.exit_code
    head, advice = "Error", ""
    if isinstance(error, InterruptedRun):
        head, message, code = "Interrupted", str(error), error.exit_code
    elif isinstance(error, OSError) and (fault := os_fault(error)):
        message, code = fault, FAULT
    elif isinstance(error, click.ClickException):
        message, code = error.format_message(), error.exit_code
    elif isinstance(error, AlignError):
        message, code = str(error), error.exit_code
    else:
        fault = memory_fault(error)
        message, code = fault or described(error), FAILED
        advice = "" if state.debug or fault else " (run again with --debug for the traceback)"
    if notes := getattr(error, "__notes__", []):
        message += f" ({'; '.join(notes)})"
    try:
        Path.cwd()
    except FileNotFoundError:
        message, advice, code = "the current directory has been deleted: change to another one", "", FAULT
    return head, f"{readable(message)}{advice}", code
