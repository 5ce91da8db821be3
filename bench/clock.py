"""Time of a step, and of two sides that take turns."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch


class Seconds(NamedTuple):
    """What one call cost: time in the process's own code, and in the kernel on its behalf (0 on a GPU)."""

    user: float
    system: float = 0.0

    @property
    def total(self) -> float:
        """Both together."""
        return self.user + self.system


@dataclass(frozen=True)
class Times:
    """Each repetition; position i of one side was measured next to position i of the other."""

    ours: Sequence[Seconds]
    theirs: Sequence[Seconds]

    @property
    def ratio(self) -> float:
        """Median over repetitions of theirs / ours: how many times faster ours is."""
        return median(b.total / a.total for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def user_ratio(self) -> float:
        """The same without the kernel's share, most of which is handing out fresh pages for large tensors."""
        return median(b.user / a.user for a, b in zip(self.ours, self.theirs, strict=True))


def take_turns(
    ours: Callable[[int], object], theirs: Callable[[int], object], reset: Callable[[], None], repeats: int, device: str
) -> Times:
    """Measure ``ours(k)`` and ``theirs(k)`` in turns for k = 0 .. repeats - 1, each having run before.

    ``reset`` runs before every measurement, outside of it.
    """
    found: tuple[list[Seconds], list[Seconds]] = ([], [])
    for k in range(repeats):
        for work, times in zip((ours, theirs), found, strict=True):
            reset()
            gc.collect()
            times.append(measure(work, k, device))
    return Times(*found)


def measure(work: Callable[[int], object], argument: int, device: str) -> Seconds:
    """Return what one call costs: CPU time of the process, or on a GPU the time between two events around it."""
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
