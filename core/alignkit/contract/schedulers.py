"""The types of scheduler plugins, which carry out the cells of a sweep and the stages of a pipeline."""

from __future__ import annotations

import os
import platform
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic

from pydantic import Field

from alignkit.contract.types import Settings, SettingsT
from alignkit.errors import AlignError, ConfigError, InterruptedRun, described
from alignkit.system.lock import lock_holder

PATIENCE = 60.0
"""Seconds that the process of an earlier attempt gets to end: its machine may count as lost before it is gone."""


class SchedulerSettings(Settings):
    """Base of a scheduler's settings: how many cells at once, and what each of them gets."""

    jobs: int | None = Field(None, ge=1, description="most cells at a time (default: as many as there is room for)")
    gpus_per_cell: float | None = Field(
        None,
        ge=0,
        description="accelerators of a cell; 0.5: two cells share one; 0: none (default: 1 where there are any)",
    )
    cpus_per_cell: int = Field(1, ge=1, description="CPU threads of a cell that has a process of its own")


@dataclass(frozen=True)
class Task:
    """A cell of a sweep or a stage of a pipeline, which can be pickled and carried out anywhere (:func:`carry_out`)."""

    name: str
    work: Callable[[], None]
    """A module's function or a ``functools.partial`` of one; what an earlier attempt left, it resumes."""
    directory: Path
    """Absolute path of its results; the parent exists, on storage that all machines share."""
    start: Path = field(default_factory=Path.cwd)
    """Directory of the command, which relative paths of the work belong to."""


@dataclass(frozen=True)
class Outcome:
    """The end of a task; ``status`` is finished, failed or interrupted. Before that, ``waiting`` is a lost attempt's."""

    name: str
    status: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    error: str | None = None
    exit_code: int = 0
    host: str = ""


class Scheduler(ABC, Generic[SettingsT]):
    """Base of a scheduler plugin, registered in ``align.schedulers``; its settings derive from ``SchedulerSettings``."""

    name: ClassVar[str]
    settings_type: ClassVar[type[SchedulerSettings]]

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    def check(self) -> None:
        """Raise ``ConfigError`` if tasks cannot be carried out here: a package, cluster or accelerator is missing."""

    @abstractmethod
    def run(
        self, tasks: Sequence[Task], started: Callable[[str], None], say: Callable[[str], None]
    ) -> Iterator[Outcome]:
        """Carry out the tasks in order, call ``started`` with the name at each attempt, and yield the outcome when it ends.

        A race calls it for each rung and a pipeline for each stage, after one :meth:`check`.
        A failed task does not stop the others, and one whose process or machine is lost has an outcome too. After
        ``KeyboardInterrupt`` (Ctrl-C; SIGTERM has its ``number``), running tasks receive the signal and get time to save a
        checkpoint, their outcomes are yielded, and no other task is started; if none of them is ``interrupted``, the interrupt is
        raised again. No process is left at the end or when the generator is closed. ``say`` shows a message to the user.
        """


def carry_out(task: Task, threads: int | None = None) -> Outcome:
    """Do a task's work in this process, with ``threads`` CPU threads; every exception becomes part of the outcome."""
    began, cpu = time.monotonic(), time.process_time()
    status, error, code = "finished", None, 0
    try:
        _enter(task)
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)
            if (torch := sys.modules.get("torch")) is not None:
                torch.set_num_threads(threads)
        task.work()
    except (InterruptedRun, KeyboardInterrupt) as raised:
        status, error = "interrupted", str(raised) or "interrupted"
        code = getattr(raised, "exit_code", 128 + getattr(raised, "number", 2))
    except Exception as raised:  # a failed task must not stop the others; its error is recorded
        status, error = "failed", str(raised) if isinstance(raised, AlignError) else described(raised)
        code = getattr(raised, "exit_code", 1)
    spent = time.monotonic() - began, time.process_time() - cpu
    return Outcome(task.name, status, *spent, error, code, platform.node())


def _enter(task: Task) -> None:
    """Change to the task's start directory, once no process of an earlier attempt holds the lock of its results."""
    for directory in (task.start, task.directory.parent):
        if not directory.is_dir():
            raise ConfigError(
                f"{platform.node()} has no directory {directory}: start from, and write to (--output), storage that all "
                "machines share"
            )
    os.chdir(task.start)
    until = time.monotonic() + PATIENCE
    while lock_holder(task.directory / ".lock") is not None and time.monotonic() < until:
        time.sleep(0.2)
