"""A process that carries out tasks one after another, and ends with the process that started it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection

from alignkit import Outcome, Task, carry_out

_PATIENCE = 60.0
"""Seconds a process gets to end, saving a checkpoint, before it is killed."""


class Worker:
    """The parent's side of a process that carries out one task at a time.

    The process is spawned, because a fork of a process that has used torch can hang. It has a session of its own: signals of
    the terminal reach the parent alone, which passes them on once.
    """

    def __init__(self, variables: Mapping[str, str], threads: int) -> None:
        self._arguments = (dict(variables), threads)
        self.pipe: Connection
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._arguments))
        self._process.start()
        theirs.close()  # so that the pipe ends with the process

    def begin(self, task: Task) -> None:
        """Send a task to the process."""
        self._task, self._began = task, time.monotonic()
        with suppress(BrokenPipeError):  # it died while it was idle: the outcome says so
            self.pipe.send(task)

    def outcome(self, stopped: int | None) -> Outcome:
        """Return the outcome of the task, after ``stopped``, the signal that was sent to the process, if any."""
        try:
            outcome: Outcome = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            return self._lost(stopped)
        return outcome

    def _lost(self, stopped: int | None) -> Outcome:
        """Return the outcome of a task whose process ended, and start another process if more tasks may come."""
        self._process.join()
        code = self._process.exitcode or 0
        spent = time.monotonic() - self._began
        if stopped is not None:
            return Outcome(
                self._task.name, "interrupted", spent, exit_code=128 + stopped, error="stopped before it began"
            )
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        advice = " (out of memory?)" if code == -signal.SIGKILL else ""
        self.pipe.close()
        self._start()
        return Outcome(self._task.name, "failed", spent, error=f"its process {how}{advice}", exit_code=1)

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid or 0, number)

    def end(self, *, at_once: bool = False) -> None:
        """End the process: an idle one by itself, another saves a checkpoint, or not if ``at_once``."""
        self.pipe.close()
        self._process.join(0 if at_once else _PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, variables: Mapping[str, str], threads: int) -> None:
    """Carry out tasks until the parent closes the pipe or ends."""
    os.setsid()
    os.environ.update(variables)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            pipe.send(carry_out(pipe.recv(), threads))


def _end_with_parent() -> None:
    """Stop this process like SIGTERM when the parent ends: a run saves a checkpoint first."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
