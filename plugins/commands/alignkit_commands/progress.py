"""The status of a run, read from its files alone, so that a run of another process can be watched."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.config import RunConfig
from alignkit.contract.registry import provided
from alignkit.rundir.directory import RunDir
from alignkit.rundir.metrics import MetricsLog
from alignkit.rundir.record import ProcessesRecord
from alignkit.system.files import read_jsonl
from alignkit.system.terminal import duration

SHOWN = tuple(
    "loss reward kl rewards/margins rewards/accuracies logps/chosen logps/rejected entropy length learning_rate grad_norm "
    "tokens_per_second memory_gb".split()
)
"""Keys of metrics.jsonl that are shown, in this order, before the loss terms."""


GOING_ON = ("starting", "running")
"""Status of a run that has not ended."""


@dataclass(frozen=True)
class RunStatus:
    path: Path
    status: str
    """As in run.json, ``starting`` before there is one; ``dead`` if it should go on and no process holds the lock."""
    method: str
    step: int
    steps: int | None
    seconds_left: float | None
    """Training time left at the pace of the logging steps so far; None if training is over or the time is unknown."""
    latest: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]
    error: str | None
    stopped: str | None = None
    """Why training was stopped early."""
    changes: Sequence[Mapping[str, Any]] = ()
    """Settings that were changed by a resume: ``{step, key, from, to}``."""
    lost: str | None = None
    """What a finished run's metrics.jsonl lacks."""
    processes: Mapping[str, Any] = field(default_factory=dict)
    """As in run.json: ``world_size, nodes, strategy, devices, peak_memory_gb``."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        hidden = ("path", "history", "samples")
        return {"run": str(self.path)} | {name: value for name, value in vars(self).items() if name not in hidden}


def read_status(path: Path) -> RunStatus:
    """Return the status of the run in ``path``; raises ``ConfigError`` if it is not a run directory."""
    run = RunDir.open(path)
    record = run.read_record()
    entries = MetricsLog(run.metrics).read()
    history = [entry for entry in entries if "loss" in entry]
    latest = {name: value for entry in entries for name, value in entry.items() if isinstance(value, int | float)}
    step = int(latest.get("step", 0))
    steps = _total(record, history)
    status = str(record.get("status", "starting"))
    if status in GOING_ON and run.locked_by() is None:
        status = "dead"
    lost = _lost(record, entries, run.metrics) if status == "finished" else None
    left = None
    if status == "running" and steps and len(history) > 1:
        # At the mean pace from the run's start to its last logging step.
        done, spent = int(history[-1]["step"]), run.metrics.stat().st_mtime - float(record.get("started", time.time()))
        left = spent / done * (steps - done) if done and spent > 0 else None
    samples = read_jsonl(run.samples) if run.samples.is_file() else []
    method, evaluation, error = str(record.get("method", "run")), record.get("evaluation", {}), record.get("error")
    course = record.get("stopped"), record.get("changes", ()), lost, record.get("processes", {})
    return RunStatus(path, status, method, step, steps, left, latest, history, evaluation, samples, error, *course)


def _total(record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the total number of steps: as configured, or extrapolated from the epochs done so far."""
    with suppress(KeyError, TypeError, ValueError):
        train = RunConfig.model_validate(record["config"]).train.arguments
        if (steps := int(train.get("max_steps", -1))) > 0:
            return steps
        if record.get("status") == "finished":
            return int(record["steps"])
        if history and history[-1].get("epoch"):
            done = float(history[-1]["step"]) / float(history[-1]["epoch"])
            return round(float(train.get("num_train_epochs", 3)) * done)
    return None


def _lost(record: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], log: Path) -> str | None:
    """Return what is missing at the end of a finished run's log."""
    last, steps = entries[-1].get("step", 0) if entries else 0, record.get("steps") or 0
    if not log.is_file():
        return f"{log} is missing" if steps else None
    return f"{log}:{len(entries)} is the last whole line, of step {last} of {steps}" if last < steps else None


def lines(found: RunStatus) -> list[str]:
    """Return the status of a run as lines of text."""
    of = "" if found.steps is None else f" of {found.steps}"
    left = "" if found.seconds_left is None else f", about {duration(found.seconds_left)} left"
    out = [f"{found.path}: {found.method}, {found.status}, step {found.step}{of}{left}"]
    if found.error and found.status in ("failed", "interrupted"):
        out.append(f"  {found.error}")
    if found.status == "dead":
        out.append(f"  the process has died; resume with: align resume {shlex.quote(str(found.path))}")
    if found.lost:
        out.append(f"  the metrics are damaged: {found.lost}")
    processes = ProcessesRecord.model_validate(found.processes)
    if processes.world_size > 1:
        speed = found.latest.get("tokens_per_second")
        each = "" if speed is None else f", {speed / processes.world_size:,.0f} tokens/s per device"
        out.append(f"  {processes}{each}")
    if found.stopped:
        out.append(f"  stopped early: {found.stopped}")
    out += ["  after step {step}: {key} changed from {from} to {to}".format_map(change) for change in found.changes]
    names = [name for name in SHOWN if name in found.latest] + sorted(n for n in found.latest if n.startswith("loss/"))
    if names:
        out.append("  " + "  ".join(f"{name} {found.latest[name]:.4g}" for name in names))
    before, after = (found.evaluation.get(when) or {} for when in ("before", "after"))
    describe = provided("align.reports", "metrics")
    return out + [f"  {line}" for line in (describe(before, after) if describe else [])]
