"""Schedulers: run the cells of a sweep sequentially in this process, or in several processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from alignkit import RunConfig
from alignkit.errors import AlignError, InterruptedRun


@dataclass(frozen=True)
class Task:
    """One run to execute."""

    name: str
    config: RunConfig
    directory: Path


@dataclass(frozen=True)
class Outcome:
    """The result of a task; ``status`` is finished, failed or interrupted."""

    name: str
    status: str
    seconds: float
    cpu_seconds: float
    error: str | None = None
    exit_code: int = 0


Report = Callable[[Outcome], None]


class Scheduler(Protocol):
    """Runs tasks and reports each when it ends. A failed task does not stop the others; an interruption does."""

    def run(self, tasks: Iterable[Task], started: Callable[[str], None], ended: Report) -> None:
        """Run every task."""
        ...


class InThisProcess:
    """Runs tasks sequentially in this process, so that the start-up cost is paid once."""

    def run(self, tasks: Iterable[Task], started: Callable[[str], None], ended: Report) -> None:
        """Run every task; stop at the first interruption."""
        for task in tasks:
            started(task.name)
            outcome = run_task(task)
            ended(outcome)
            if outcome.status == "interrupted":
                return


class InProcesses:
    """Runs tasks in ``jobs`` worker processes with one thread each.

    The processes are spawned, because a fork of a process that has used torch can hang.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def run(self, tasks: Iterable[Task], started: Callable[[str], None], ended: Report) -> None:
        """Run every task; after an interruption, start no more."""
        import multiprocessing
        from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

        context = multiprocessing.get_context("spawn")
        waiting = list(tasks)[::-1]
        running: set[Future[Outcome]] = set()
        with ProcessPoolExecutor(self.jobs, mp_context=context, initializer=_one_thread) as pool:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    task = waiting.pop()
                    started(task.name)
                    running.add(pool.submit(run_task, task))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    outcome = future.result()
                    ended(outcome)
                    if outcome.status == "interrupted":
                        waiting.clear()


def run_task(task: Task) -> Outcome:
    """Run a task, or resume an earlier attempt; every exception becomes part of the outcome."""
    from alignkit.runs.api import resume, run

    started, cpu = time.monotonic(), time.process_time()

    def outcome(status: str, error: BaseException | None = None, exit_code: int = 0) -> Outcome:
        message = None if error is None else str(error) or type(error).__name__
        if error is not None and not isinstance(error, AlignError):
            message = f"{type(error).__name__}: {message}"
        spent = time.monotonic() - started, time.process_time() - cpu
        return Outcome(task.name, status, *spent, message, exit_code)

    try:
        if (task.directory / "run.json").is_file():
            resume(task.directory, quiet=True)
        else:
            run(task.config, quiet=True)
    except InterruptedRun as error:
        return outcome("interrupted", error, error.exit_code)
    except KeyboardInterrupt as error:
        return outcome("interrupted", error, 130)
    except Exception as error:  # a failed cell must not stop the others; its error is recorded in the manifest
        return outcome("failed", error)
    return outcome("finished")


def _one_thread() -> None:
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
