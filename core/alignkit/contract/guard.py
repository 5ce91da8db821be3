"""Plugin code is run such that whatever it raises, ends or prints leaves the command's status, exit code and output right."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from alignkit.errors import AlignError, PluginError, RunFailedError, described, memory_fault
from alignkit.system.quiet import stdout_to_stderr


@contextmanager
def named(what: str, failure: type[AlignError] = RunFailedError) -> Iterator[None]:
    """Turn whatever the block raises (``SystemExit`` too) into a ``failure`` that begins with ``what``.

    alignkit's own errors, an interrupt and a lack of memory pass.
    """
    try:
        with exits_raised():
            yield
    except BaseException as error:
        if passes(error):
            raise
        raise failure(f"{what}: {described(error)}") from error


@contextmanager
def exits_raised() -> Iterator[None]:
    """Let ``os._exit`` raise ``SystemExit`` in the block: it would end the process with any code and without a word."""
    process, leave = os.getpid(), os._exit

    def exit_or_raise(status: int) -> NoReturn:
        if os.getpid() == process:
            raise SystemExit(f"os._exit({status})")
        leave(status)  # a process that the plugin forked

    os._exit = exit_or_raise
    try:
        yield
    finally:
        os._exit = leave


@contextmanager
def running(what: str, failure: type[AlignError] = RunFailedError) -> Iterator[None]:
    """Run the code of a plugin: its errors are :func:`named`, and what it prints goes to stderr."""
    with named(what, failure), stdout_to_stderr():
        yield


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Run code that a plugin executes when it is imported or made: its warning filters end with it."""
    with running(what, PluginError), warnings.catch_warnings():
        yield


def passes(error: BaseException) -> bool:
    """Whether an exception out of a plugin is passed on as it is."""
    return isinstance(error, AlignError | KeyboardInterrupt) or memory_fault(error) is not None
