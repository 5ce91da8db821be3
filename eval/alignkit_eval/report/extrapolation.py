"""The time and price of a whole run, from what three steps and a batch of each evaluation took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkit import RunConfig


@dataclass(frozen=True)
class Measured:
    """Seconds and memory of a trial."""

    steps: Sequence[float]
    """Seconds of each optimizer step; the first has the longest rows."""
    memory: float
    """Peak of the process that needed most, in GiB."""
    suites: dict[str, float] = field(default_factory=dict)
    """Seconds of each suite for all held-out rows, extrapolated from one batch."""
    held_out: float = 0.0
    """Seconds of the loss of all held-out rows."""
    reference: float = 0.0
    """Seconds of the reference log-probabilities of all rows."""
    not_measured: Sequence[str] = ()
    """Suites that were left out."""


@dataclass(frozen=True)
class Work:
    """How often a run does what a trial measured."""

    steps: int
    steps_per_rollout: int = 1
    suites: dict[str, int] = field(default_factory=dict)
    """Evaluations by suite: before, during and after training."""
    held_out: int = 0
    """Evaluations of the held-out loss."""
    tokens_per_step: float = 0.0
    processes: int = 1
    price_per_hour: float | None = None


def extrapolate(measured: Measured, work: Work) -> dict[str, str]:
    """Return the lines of the table: seconds a step, hours in all, tokens a second, and the price."""
    step = seconds_per_step(measured.steps, work.steps_per_rollout)
    evaluation = sum(seconds * work.suites.get(name, 0) for name, seconds in measured.suites.items())
    evaluation += measured.held_out * work.held_out
    total = step * work.steps + evaluation + measured.reference
    parts = {"training": step * work.steps, "evaluation": evaluation, "reference": measured.reference}
    shown = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
    lines = {"time per step": f"{step:.3g} s, measured in {len(measured.steps)} steps"}
    if work.tokens_per_step:
        lines["speed"] = f"{work.tokens_per_step / step:,.0f} tokens per second"
    lines["whole run"] = f"about {duration(total)}: {shown}"
    if measured.not_measured:
        lines["whole run"] += f"; without {', '.join(measured.not_measured)}, which one batch does not tell"
    if work.price_per_hour is not None:
        hours = total / 3600 * work.processes
        lines["price"] = (
            f"{hours * work.price_per_hour:,.2f}: {hours:,.2f} hours of a process at {work.price_per_hour:g}"
        )
    return lines


def seconds_per_step(steps: Sequence[float], per_rollout: int) -> float:
    """Return the mean seconds of an optimizer step, of which every ``per_rollout``-th samples answers first.

    The first step is left out where there are others of its kind: it has the longest rows, and it warms up.
    """
    others = list(steps[1:]) or list(steps)
    mean = sum(others) / len(others)
    return mean if per_rollout == 1 else (steps[0] + (per_rollout - 1) * mean) / per_rollout


def duration(seconds: float) -> str:
    """Return a duration as people say it: ``3.2 s``, ``12 min``, ``2 h 5 min``."""
    if seconds < 600:
        return f"{seconds:.3g} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def evaluations(config: RunConfig, arguments: Any, steps: int) -> tuple[dict[str, int], int]:
    """Return how often each suite runs in a run of ``steps`` steps, and how often the held-out loss is computed."""
    counts = dict.fromkeys(config.eval.suites, 1 + config.eval.before)
    for name, every in config.eval.during.items():
        counts[name] = counts.get(name, 0) + steps // every
    strategy = str(getattr(arguments.eval_strategy, "value", arguments.eval_strategy))
    between = float(arguments.eval_steps or arguments.logging_steps or 0)
    by_steps = int(steps // max(between if between >= 1 else steps * between, 1)) if between else 0
    epochs = int(arguments.num_train_epochs) if arguments.max_steps <= 0 else 0
    return counts, {"steps": by_steps, "epoch": epochs}.get(strategy, 0)
