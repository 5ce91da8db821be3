"""Timing of a step, and of two sides in alternation."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch


class Seconds(NamedTuple):
    """CPU time of one call: user and system (kernel) time; on a GPU, elapsed time as user time."""

    user: float
    system: float = 0.0

    @property
    def total(self) -> float:
        """The sum of both."""
        return self.user + self.system


@dataclass(frozen=True)
class Times:
    """The times of all repetitions; position i of one side was measured next to position i of the other."""

    ours: Sequence[Seconds]
    theirs: Sequence[Seconds]

    @property
    def ratio(self) -> float:
        """The median over repetitions of theirs / ours (the speed-up)."""
        return median(b.total / a.total for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def user_ratio(self) -> float:
        """The same for user time only; system time is mostly spent on fresh pages for large tensors."""
        return median(b.user / a.user for a, b in zip(self.ours, self.theirs, strict=True))


def take_turns(
    ours: Callable[[int], object], theirs: Callable[[int], object], reset: Callable[[], None], repeats: int, device: str
) -> Times:
    """Measure ``ours(k)`` and ``theirs(k)`` alternately for k = 0 .. repeats - 1; both must be warmed up.

    ``reset`` is called before every measurement and not timed.
    """
    found: tuple[list[Seconds], list[Seconds]] = ([], [])
    for k in range(repeats):
        for work, times in zip((ours, theirs), found, strict=True):
            reset()
            gc.collect()
            times.append(measure(work, k, device))
    return Times(*found)


def measure(work: Callable[[int], object], argument: int, device: str) -> Seconds:
    """Return the CPU time of one call, or on a GPU the time between two events around it."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        work(argument)
        end.record()
        torch.cuda.synchronize()
        return Seconds(float(start.elapsed_time(end)) / 1e3)
    before = resource.getrusage(resource.RUSAGE_SELF)
    work(argument)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return Seconds(after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime)
