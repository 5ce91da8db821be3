"""The scheduler ``ray``: every cell is a Ray task; one whose worker or node is lost is resumed on another."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import alignkit
from alignkit import Outcome, Scheduler, SchedulerSettings, Task
from alignkit.errors import ConfigError, first_line
from alignkit.rundir.directory import RunDir
from pydantic import Field

from alignkit_ray.cell import cell

PASSED_ON = (
    *("ALIGN_PLUGINS", "ALIGN_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *("TOKENIZERS_PARALLELISM", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
)
"""Variables of the driver that workers get; passwords and tokens are none of them, because Ray would show them."""

_INTERVAL = 1.0

_PATIENCE = 60.0
"""Seconds that interrupted cells get to save a checkpoint."""


class RaySettings(SchedulerSettings):
    """Settings of ray: `align sweep --scheduler ray --address auto --gpus-per-cell 1`."""

    address: str = Field(
        "auto",
        min_length=1,
        description="auto: the cluster that runs on this machine; HOST:PORT or ray://HOST:PORT: another one; "
        "local: a cluster of this machine alone, for this command",
    )
    retries: int = Field(
        3, ge=0, description="how often a cell is resumed from its last checkpoint after its worker or node was lost"
    )
    resources: dict[str, float] = Field({}, description="other resources of a cell by name, as nodes declare them")
    memory_gb: float | None = Field(None, gt=0, description="memory that Ray reserves for a cell, in GiB")


@dataclass
class Attempt:
    """A task that was given to Ray."""

    task: Task
    number: int
    began: float


@dataclass
class Cells:
    """The tasks that wait, and those that Ray carries out, by Ray's reference to their results."""

    waiting: deque[Attempt]
    running: dict[Any, Attempt] = field(default_factory=dict)
    interrupt: KeyboardInterrupt | None = None
    """The first Ctrl-C, after which no task begins."""

    def cancel(self, *, force: bool) -> None:
        """Stop what runs: as Ctrl-C does, or at once."""
        import ray

        for ref in self.running:
            ray.cancel(ref, force=force)


class OnRay(Scheduler[RaySettings]):
    """Cells as Ray tasks: on every node that has room, each with its own CPUs and accelerators."""

    name = "ray"
    settings_type = RaySettings
    _connected = False
    _gpus = 0.0

    def check(self) -> None:
        """Connect to the cluster; raises ``ConfigError`` if there is none, or if it cannot have room for a cell."""
        if importlib.util.find_spec("ray") is None:
            raise ConfigError('scheduler ray needs Ray, which is not installed: pip install "alignkit[ray]"')
        self._connect()
        wanted = self.settings.gpus_per_cell
        self._gpus = wanted if wanted is not None else float(any(n.get("GPU") for n in _nodes()))
        if not self._room() and self.settings.address == "local":
            self._disconnect()
            raise ConfigError(
                f"this machine has no room for a cell with {self._wanted()}: lower cpus_per_cell or gpus_per_cell"
            )

    def run(
        self, tasks: Sequence[Task], started: Callable[[str], None], say: Callable[[str], None]
    ) -> Iterator[Outcome]:
        """Carry out the tasks, as many at a time as the cluster has room for, or ``jobs``; leave the cluster after them."""
        self._connect()
        cells, give_up = Cells(deque(Attempt(task, 0, 0.0) for task in tasks)), 0.0
        if tasks and not self._room():
            say(f"no node of the cluster has {self._wanted()} yet: waiting for one")
        try:
            while cells.running or cells.waiting:
                try:
                    self._begin(cells, started)
                    yield from self._ended(cells, say)
                    if cells.interrupt is not None and time.monotonic() > give_up:
                        cells.cancel(force=True)
                except KeyboardInterrupt as error:
                    if cells.interrupt is not None:
                        raise  # the second one: at once
                    cells.interrupt, give_up = error, time.monotonic() + _PATIENCE
                    cells.waiting.clear()
                    cells.cancel(force=False)
            if cells.interrupt is not None:
                raise cells.interrupt
        finally:
            cells.cancel(force=True)
            self._disconnect()

    def _begin(self, cells: Cells, started: Callable[[str], None]) -> None:
        """Give Ray as many of the waiting tasks as the cluster has room for."""
        for _ in range(min(len(cells.waiting), (self.settings.jobs or max(self._room(), 1)) - len(cells.running))):
            attempt = cells.waiting.popleft()
            attempt.began = time.monotonic()
            cells.running[self._submit(attempt.task)] = attempt
            started(attempt.task.name)

    def _ended(self, cells: Cells, say: Callable[[str], None]) -> Iterator[Outcome]:
        """Yield the outcome of each task that ends within :data:`_INTERVAL`."""
        import ray

        done, _ = ray.wait(list(cells.running), timeout=_INTERVAL)
        for ref in done:
            attempt = cells.running.pop(ref)
            outcome = _outcome(ref, attempt, cells.interrupt)
            yield self._again(cells, attempt, outcome, say) if outcome.status == "lost" else outcome
            if outcome.status == "interrupted":
                cells.waiting.clear()

    def _again(self, cells: Cells, attempt: Attempt, lost: Outcome, say: Callable[[str], None]) -> Outcome:
        """Let the task of a lost attempt wait for another one, or fail."""
        if cells.interrupt is not None or attempt.number >= self.settings.retries:
            return _failed(attempt, f"{lost.error}, {attempt.number + 1} times")
        attempt.number += 1
        most = self.settings.retries
        say(f"{lost.name}: {lost.error}; resumed elsewhere ({attempt.number} of at most {most} times)")
        cells.waiting.appendleft(attempt)
        return replace(lost, status="waiting", seconds=time.monotonic() - attempt.began)

    def _submit(self, task: Task) -> Any:
        import ray

        given = self.settings
        options: dict[str, Any] = {"num_cpus": given.cpus_per_cell, "num_gpus": self._gpus, "max_retries": 0}
        options |= {"resources": given.resources} if given.resources else {}
        options |= {"memory": int(given.memory_gb * 2**30)} if given.memory_gb else {}
        variables = {name: value for name in PASSED_ON if (value := os.environ.get(name)) is not None}
        variables |= {"CUDA_VISIBLE_DEVICES": ""} if self._gpus == 0 else {}
        remote = ray.remote(**options)(cell)
        return remote.options(name=task.name).remote(task, given.cpus_per_cell, variables, alignkit.__version__)

    def _room(self) -> int:
        """Return the number of cells that the nodes of the cluster have room for, whatever runs on them."""
        wanted = {"CPU": float(self.settings.cpus_per_cell), "GPU": self._gpus, **self.settings.resources}
        asked = {name: amount for name, amount in wanted.items() if amount}
        return sum(min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in asked.items()) for node in _nodes())

    def _wanted(self) -> str:
        named = {"CPU": self.settings.cpus_per_cell, "GPU": self._gpus, **self.settings.resources}
        return " and ".join(f"{amount:g} {name}" for name, amount in named.items() if amount)

    def _connect(self) -> None:
        """Connect to the cluster, or start one of this machine, unless this process is connected; raises ``ConfigError``."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
        import ray

        if ray.is_initialized():
            return
        address = self.settings.address
        local = {"include_dashboard": False, "object_store_memory": 100 * 2**20} if address == "local" else {}
        try:
            _answers(address)
            ray.init(address, log_to_driver=True, logging_level=logging.ERROR, **local)
        except (ValueError, RuntimeError, OSError, AssertionError) as error:
            raise ConfigError(
                f"no Ray cluster answers at {address} ({first_line(error)}): start one with `ray start --head`, or give "
                "--address HOST:PORT, or --address local for a cluster of this machine alone"
            ) from error
        self._connected = True

    def _disconnect(self) -> None:
        import ray

        if self._connected:
            self._connected = False
            ray.shutdown()


def _answers(address: str) -> None:
    """Raise ``OSError`` if an address of a host and port cannot be reached: Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _nodes() -> list[dict[str, float]]:
    """Return the resources of each node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _outcome(ref: Any, attempt: Attempt, interrupt: KeyboardInterrupt | None) -> Outcome:
    """Return the outcome of a task that ended; its status is ``lost`` if its worker or node is gone."""
    import ray
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError

    try:
        outcome: Outcome = ray.get(ref)
    except RayTaskError as error:  # not the task's own error, which is part of its outcome
        return _failed(attempt, first_line(error.cause or error))
    except TaskCancelledError:
        until = time.monotonic() + _PATIENCE
        while RunDir(attempt.task.directory).locked_by() is not None and time.monotonic() < until:
            time.sleep(0.2)  # it saves a checkpoint
        code = 128 + getattr(interrupt, "number", 2)
        spent = time.monotonic() - attempt.began
        return Outcome(attempt.task.name, "interrupted", spent, error="stopped", exit_code=code)
    except RayError as error:
        what = "its node was lost" if "Node" in type(error).__name__ else "its worker was lost"
        return Outcome(attempt.task.name, "lost", error=f"{what} ({type(error).__name__})")
    return outcome


def _failed(attempt: Attempt, error: str) -> Outcome:
    return Outcome(attempt.task.name, "failed", time.monotonic() - attempt.began, error=error, exit_code=1)
