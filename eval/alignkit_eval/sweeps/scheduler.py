"""Carrying the cells of a sweep out: one after another in this process, or side by side in several."""

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
    """One run to carry out: its name, its configuration and its directory."""

    name: str
    config: RunConfig
    directory: Path


@dataclass(frozen=True)
class Outcome:
    """How a task ended: ``finished``, ``failed`` or ``interrupted``."""

    name: str
    status: str
    seconds: float
    cpu_seconds: float
    error: str | None = None
    exit_code: int = 0


Report = Callable[[Outcome], None]


class Scheduler(Protocol):
    """Carries tasks out and reports each as it ends; a failure stops nothing, an interruption everything."""

    def run(self, tasks: Iterable[Task], started: Callable[[str], None], ended: Report) -> None:
        """Carry every task out."""
        ...


class InThisProcess:
    """One task after another here: the start-up is paid once."""

    def run(self, tasks: Iterable[Task], started: Callable[[str], None], ended: Report) -> None:
        """Carry every task out; the first interruption ends it."""
        for task in tasks:
            started(task.name)
            outcome = carry_out(task)
            ended(outcome)
            if outcome.status == "interrupted":
                return


class InProcesses:
    """Side by side in ``jobs`` processes, each of which takes one task after another and keeps to one thread.

    The processes are fresh ones (spawned): a fork of a process that has run torch may hang.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def run(self, tasks: Iterable[Task], started: Callable[[str], None], ended: Report) -> None:
        """Carry every task out; an interruption leaves those that have not begun."""
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
                    running.add(pool.submit(carry_out, task))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    outcome = future.result()
                    ended(outcome)
                    if outcome.status == "interrupted":
                        waiting.clear()


def carry_out(task: Task) -> Outcome:
    """Run a task, or go on with what an earlier attempt left in its directory; whatever happens is in the outcome."""
    from alignkit.runs.api import resume, run

    started, cpu = time.monotonic(), time.process_time()

    def outcome(status: str, error: BaseException | None = None, exit_code: int = 0) -> Outcome:
        said = None if error is None else str(error) or type(error).__name__
        if error is not None and not isinstance(error, AlignError):
            said = f"{type(error).__name__}: {said}"
        spent = time.monotonic() - started, time.process_time() - cpu
        return Outcome(task.name, status, *spent, said, exit_code)

    try:
        if (task.directory / "run.json").is_file():
            resume(task.directory, quiet=True)
        else:
            run(task.config, quiet=True)
    except InterruptedRun as error:
        return outcome("interrupted", error, error.exit_code)
    except KeyboardInterrupt as error:
        return outcome("interrupted", error, 130)
    except Exception as error:  # one cell that fails must not take the others with it; its error is in the manifest
        return outcome("failed", error)
    return outcome("finished")


def _one_thread() -> None:
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
