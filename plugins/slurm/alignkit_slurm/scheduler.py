"""The scheduler ``slurm``: the cells are a job array, submitted through submitit; one that ends early is submitted again."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from alignkit import Outcome, Scheduler, SchedulerSettings, Task, carry_out
from alignkit.errors import ConfigError, first_line
from alignkit.system.files import parse_json, write_json
from pydantic import Field, field_validator

FOLDER = "slurm-jobs"
"""Directory of the jobs' scripts and output, beside the cells."""

_INTERVAL = 1.0
_PATIENCE = 60.0
"""Seconds that interrupted cells get to save a checkpoint; Slurm's KillWait may be shorter."""


class SlurmSettings(SchedulerSettings):
    """Settings of slurm: `align sweep --scheduler slurm --gpus-per-cell 1 --scheduler-set partition=gpu`."""

    minutes: int = Field(24 * 60, ge=1, description="time limit of a cell's job")
    partition: str | None = Field(None, description="partition of the jobs")
    account: str | None = Field(None, description="account that the jobs are charged to")
    qos: str | None = Field(None, description="quality of service of the jobs")
    constraint: str | None = Field(None, description="features that nodes must have")
    memory_gb: float | None = Field(None, gt=0, description="memory of a cell's job, in GiB")
    setup: list[str] = Field([], description="shell commands before each job, e.g. to load modules")
    sbatch: dict[str, Any] = Field({}, description="further options of sbatch: {nodelist: node7}")
    retries: int = Field(
        3, ge=0, description="how often a cell is resumed after its job was preempted, ran out of time or lost its node"
    )
    cluster: Literal["slurm", "local"] = Field("slurm", description="local: processes of this machine, to try it out")

    @field_validator("gpus_per_cell")
    @classmethod
    def _whole_gpus(cls, value: float | None) -> float | None:
        if value is not None and not value.is_integer():
            raise ValueError("must be a whole number: jobs of Slurm do not share an accelerator")
        return value


@dataclass
class Attempt:
    """A task that was submitted as a job."""

    task: Task
    job: Any
    number: int = 0
    started: bool = False


@dataclass
class Jobs:
    """The attempts whose jobs are queued or run, and the tasks that wait to be submitted."""

    executor: Any
    running: list[Attempt]
    waiting: deque[Task]
    interrupt: KeyboardInterrupt | None = None
    """The first Ctrl-C, after which nothing is submitted."""

    def cancel(self) -> None:
        """Cancel every job."""
        for attempt in self.running:
            attempt.job.cancel(check=False)


class OnSlurm(Scheduler[SlurmSettings]):
    """Cells as jobs of a Slurm array; the command waits for them and shows their progress."""

    name = "slurm"
    settings_type = SlurmSettings

    def check(self) -> None:
        """Raise ``ConfigError`` if submitit or Slurm's commands are missing."""
        if importlib.util.find_spec("submitit") is None:
            raise ConfigError('scheduler slurm needs submitit, which is not installed: pip install "alignkit[slurm]"')
        if self.settings.cluster == "slurm" and shutil.which("sbatch") is None:
            raise ConfigError(
                "scheduler slurm needs Slurm's commands, and sbatch is not on PATH: run it on a login node"
            )

    def run(
        self, tasks: Sequence[Task], started: Callable[[str], None], say: Callable[[str], None]
    ) -> Iterator[Outcome]:
        """Submit the tasks as one array and wait for them; jobs of an earlier command that still run are cancelled."""
        if not tasks:
            return
        folder = tasks[0].directory.parent / FOLDER
        executor = self._executor(folder)
        _cancel_earlier(executor, folder / "jobs.json")
        # Slurm limits an array itself.
        first = len(tasks) if self.settings.cluster == "slurm" else self.settings.jobs or len(tasks)
        submitted = [Attempt(*pair) for pair in zip(tasks[:first], _submit(executor, tasks[:first]), strict=True)]
        jobs, give_up = Jobs(executor, submitted, deque(tasks[first:])), 0.0
        try:
            while jobs.running:
                try:
                    _record(folder / "jobs.json", jobs.running)
                    time.sleep(_INTERVAL)
                    yield from self._ended(jobs, started, say)
                    if jobs.interrupt is not None and time.monotonic() > give_up:
                        break
                except KeyboardInterrupt as error:
                    if jobs.interrupt is not None:
                        raise  # the second one: at once
                    jobs.interrupt, give_up = error, time.monotonic() + _PATIENCE
                    jobs.cancel()
            if jobs.interrupt is not None:
                raise jobs.interrupt
        finally:
            jobs.cancel()
            _record(folder / "jobs.json", [])

    def _ended(self, jobs: Jobs, started: Callable[[str], None], say: Callable[[str], None]) -> Iterator[Outcome]:
        """Yield the outcome of each job that has ended; its task is submitted again, or else one that waits."""
        for attempt in list(jobs.running):
            if not attempt.started and (attempt.job.done() or attempt.job.state == "RUNNING"):
                attempt.started = True
                started(attempt.task.name)
            if not attempt.job.done():
                continue
            outcome = _outcome(attempt, self.settings.cluster == "slurm")
            early = outcome.status in ("lost", "interrupted")
            if early and jobs.interrupt is None and attempt.number < self.settings.retries:
                say(f"{outcome.name}: {outcome.error}; submitted again")
                attempt.number, attempt.job = attempt.number + 1, _submit(jobs.executor, [attempt.task])[0]
                attempt.started = False
                yield replace(outcome, status="waiting")
                continue
            jobs.running.remove(attempt)
            yield _final(outcome, jobs.interrupt)
            if jobs.waiting and jobs.interrupt is None:
                jobs.running.append(Attempt(jobs.waiting[0], _submit(jobs.executor, [jobs.waiting.popleft()])[0]))

    def _executor(self, folder: Path) -> Any:
        import submitit

        given = self.settings
        logging.getLogger("submitit").setLevel(logging.ERROR)
        executor = submitit.AutoExecutor(folder, cluster=given.cluster)
        gpus = given.gpus_per_cell if given.gpus_per_cell is not None else float(given.cluster == "slurm")
        slurm = given.model_dump(include={"partition", "account", "qos", "constraint"}, exclude_none=True)
        executor.update_parameters(
            name="align",
            timeout_min=given.minutes,
            cpus_per_task=given.cpus_per_cell,
            gpus_per_node=int(gpus),
            slurm_signal_delay_s=min(120, 30 * given.minutes),
            slurm_array_parallelism=given.jobs or 256,
            slurm_setup=given.setup,
            slurm_additional_parameters=given.sbatch,
            **({"mem_gb": given.memory_gb} if given.memory_gb else {}),
            **{f"slurm_{key}": value for key, value in slurm.items()},
        )
        return executor


def job(task: Task) -> Outcome:
    """Carry out a task in a job; the warning before the time limit or preemption stops it with a checkpoint, as SIGTERM."""
    signal.signal(signal.SIGUSR2, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    return carry_out(task, int(os.environ.get("SLURM_CPUS_PER_TASK", "1")))


def _submit(executor: Any, tasks: Sequence[Task]) -> list[Any]:
    """Submit tasks as one array, or a single one as a job."""
    try:
        jobs: list[Any] = executor.map_array(job, tasks) if len(tasks) > 1 else [executor.submit(job, tasks[0])]
    except Exception as error:  # submitit raises what sbatch printed
        raise ConfigError(f"Slurm refused the jobs: {first_line(error)}") from error
    return jobs


def _outcome(attempt: Attempt, shared: bool) -> Outcome:
    """Return the outcome of a job that ended; its status is ``lost`` if it left no result.

    On ``shared`` storage, submitit waits a while for the file with the result.
    """
    from submitit.core.utils import FailedJobError, UncompletedJobError

    name, log = attempt.task.name, attempt.job.paths.stderr
    lost = Outcome(name, "lost", error=f"its job {attempt.job.job_id} ended without a result ({log})", exit_code=1)
    if not shared and not attempt.job.paths.result_pickle.exists():
        return lost
    try:
        outcome: Outcome = attempt.job.result()
    except FailedJobError as error:  # not the task's own error, which is part of its outcome
        return Outcome(name, "failed", error=f"{str(error).strip().splitlines()[-1]} ({log})", exit_code=1)
    except UncompletedJobError:
        return lost
    return outcome


def _final(outcome: Outcome, interrupt: KeyboardInterrupt | None) -> Outcome:
    """Return an outcome with the status it has when no other attempt follows."""
    if outcome.status != "lost":
        return outcome
    code = 1 if interrupt is None else 128 + getattr(interrupt, "number", signal.SIGINT)
    status = "failed" if interrupt is None else "interrupted"
    return Outcome(outcome.name, status, error=outcome.error, exit_code=code)


def _record(path: Path, running: Sequence[Attempt]) -> None:
    """Write which jobs run, so that the next command can cancel them if this one is killed."""
    write_json(path, {attempt.task.name: attempt.job.job_id for attempt in running})


def _cancel_earlier(executor: Any, path: Path) -> None:
    """Cancel the jobs of a command that was killed: their cells are resumed by this one."""
    if path.is_file():
        for number in parse_json(path.read_bytes()).values():
            executor.job_class(path.parent, number).cancel(check=False)
