"""Execution of the cells of a sweep: sequentially in this process, or in several processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from alignkit.errors import AlignError, InterruptedRun

from alignkit_eval.sweeps.grid import SweepCell


@dataclass(frozen=True)
class Outcome:
    """The result of a cell; ``status`` is finished, failed or interrupted."""

    name: str
    status: str
    seconds: float
    cpu_seconds: float
    error: str | None = None
    exit_code: int = 0


def run_cells(cells: Sequence[SweepCell], jobs: int, started: Callable[[str], None]) -> Iterator[Outcome]:
    """Run cells and yield the outcome of each when it ends.

    A failed cell does not stop the others; after an interruption, no more are started. A single job runs in this
    process, so that the start-up cost is paid once.
    """
    if jobs > 1:
        yield from _in_processes(cells, jobs, started)
        return
    for cell in cells:
        started(cell.name)
        outcome = run_cell(cell)
        yield outcome
        if outcome.status == "interrupted":
            return


def _in_processes(cells: Sequence[SweepCell], jobs: int, started: Callable[[str], None]) -> Iterator[Outcome]:
    """Run cells in worker processes with one thread each.

    The processes are spawned, because a fork of a process that has used torch can hang.
    """
    import multiprocessing
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

    context = multiprocessing.get_context("spawn")
    waiting = list(cells)[::-1]
    running: set[Future[Outcome]] = set()
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop()
                started(cell.name)
                running.add(pool.submit(run_cell, cell))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                outcome = future.result()
                yield outcome
                if outcome.status == "interrupted":
                    waiting.clear()


def run_cell(cell: SweepCell) -> Outcome:
    """Run a cell, or resume an earlier attempt; every exception becomes part of the outcome."""
    from alignkit.runs.api import resume, run

    started, cpu = time.monotonic(), time.process_time()
    status, message, exit_code = "finished", None, 0
    try:
        if (cell.directory / "run.json").is_file():
            resume(cell.directory, quiet=True)
        else:
            run(cell.config, quiet=True)
    except (InterruptedRun, KeyboardInterrupt) as error:
        status, message = "interrupted", _message(error)
        exit_code = error.exit_code if isinstance(error, InterruptedRun) else 130
    except Exception as error:  # a failed cell must not stop the others; its error is recorded in the manifest
        status, message = "failed", _message(error)
    return Outcome(cell.name, status, time.monotonic() - started, time.process_time() - cpu, message, exit_code)


def _message(error: BaseException) -> str:
    kind = type(error).__name__
    message = str(error) or kind
    return message if isinstance(error, AlignError) else f"{kind}: {message}"


def _one_thread() -> None:
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
