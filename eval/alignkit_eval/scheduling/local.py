"""The scheduler ``local``: in this process, or side by side in processes of this machine with accelerators of their own."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from multiprocessing import connection

from alignkit import Outcome, Scheduler, SchedulerSettings, Task, carry_out

from alignkit_eval.scheduling.devices import environments, visible_devices
from alignkit_eval.scheduling.workers import Worker


class LocalSettings(SchedulerSettings):
    """Settings of local: `align sweep --jobs 4 --gpus-per-cell 2`."""


class Local(Scheduler[LocalSettings]):
    """Cells on this machine: in one process for each of ``jobs``, or in this process if it takes one cell at a time."""

    name = "local"
    settings_type = LocalSettings

    @cached_property
    def environments(self) -> list[Mapping[str, str]]:
        """Variables of each process."""
        return environments(visible_devices(), self.settings)

    def check(self) -> None:
        """Raise ``ConfigError`` if there are too few accelerators."""
        _ = self.environments

    def run(
        self, tasks: Sequence[Task], started: Callable[[str], None], say: Callable[[str], None]
    ) -> Iterator[Outcome]:
        """Carry out the tasks; a single one at a time runs in this process, so that the start-up cost is paid once."""
        if len(self.environments) == 1 and len(visible_devices()) < 2:
            return carry_out_here(tasks, started)
        return carry_out_beside(tasks, started, self.environments[: len(tasks)], self.settings.cpus_per_cell)


def carry_out_here(tasks: Sequence[Task], started: Callable[[str], None]) -> Iterator[Outcome]:
    """Carry out tasks in this process, one after another; yield each one's outcome."""
    for task in tasks:
        started(task.name)
        outcome = carry_out(task)
        yield outcome
        if outcome.status == "interrupted":
            return


def carry_out_beside(
    tasks: Sequence[Task], started: Callable[[str], None], variables: Sequence[Mapping[str, str]], threads: int
) -> Iterator[Outcome]:
    """Carry out tasks in one process for each of ``variables``, with so many threads; yield outcomes as tasks end."""
    waiting = deque(tasks)
    stop: int | None = None
    interrupt: KeyboardInterrupt | None = None
    idle = [Worker(each, threads) for each in variables]
    busy: dict[object, Worker] = {}
    try:
        while busy or (waiting and stop is None):
            try:
                while idle and waiting and stop is None:
                    worker, task = idle.pop(), waiting.popleft()
                    started(task.name)
                    worker.begin(task)
                    busy[worker.pipe] = worker
                for pipe in connection.wait([worker.pipe for worker in busy.values()]):
                    worker = busy.pop(pipe)
                    outcome = worker.outcome(stop)
                    idle.append(worker)
                    yield outcome
                    if outcome.status == "interrupted":  # by a signal that did not reach this process
                        waiting.clear()
            except KeyboardInterrupt as error:
                if stop is not None:
                    raise  # the second one: at once
                interrupt, stop = error, int(getattr(error, "number", signal.SIGINT))
                for worker in busy.values():
                    worker.signal(stop)
        if interrupt is not None:
            raise interrupt
    finally:
        for worker in busy.values():
            worker.signal(signal.SIGTERM)
        for worker in [*busy.values(), *idle]:
            worker.end(at_once=stop is not None)
