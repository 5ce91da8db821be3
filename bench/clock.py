"""Time of a step, and of two sides that take turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Times:
    """Seconds of each repetition; position i of one side was measured next to position i of the other."""

    ours: Sequence[float]
    theirs: Sequence[float]

    @property
    def ratio(self) -> float:
        """Median over repetitions of theirs / ours: how many times faster ours is."""
        return median(b / a for a, b in zip(self.ours, self.theirs, strict=True))


def take_turns(
    ours: Callable[[int], object], theirs: Callable[[int], object], reset: Callable[[], None], repeats: int, device: str
) -> Times:
    """Measure ``ours(k)`` and ``theirs(k)`` in turns for k = 0 .. repeats - 1, each having run before.

    ``reset`` runs before every measurement, outside of it.
    """
    found: tuple[list[float], list[float]] = ([], [])
    for k in range(repeats):
        for work, times in zip((ours, theirs), found, strict=True):
            reset()
            gc.collect()
            times.append(measure(work, k, device))
    return Times(*found)


def measure(work: Callable[[int], object], argument: int, device: str) -> float:
    """Return what one call costs: process CPU time (user and system), or on a GPU the time between two events."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        work(argument)
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    begin = time.process_time()
    work(argument)
    return time.process_time() - begin
