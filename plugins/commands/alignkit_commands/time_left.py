"""The time left of a progress bar, also where a step takes minutes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from alignkit.system.terminal import duration
from rich.progress import ProgressColumn, Task
from rich.text import Text


class TimeLeft(ProgressColumn):
    """Time left at the pace of the latest steps, counted down while a step runs; before the first one, the time so far.

    rich's own column forgets what is older than 30 seconds, so it knows no pace where a step takes longer.
    """

    max_refresh = 0.5

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[int, deque[tuple[float, float]]] = {}
        """Task -> time and units done, when that changed."""

    def render(self, task: Task) -> Text:
        now = self._clock()
        seen = self._seen.setdefault(task.id, deque(maxlen=32))
        if not seen or seen[-1][1] != task.completed:
            seen.append((now, task.completed))
        (began, before), (ended, done) = seen[0], seen[-1]
        if task.finished or task.total is None:
            return Text(duration(now - began))
        if done == before:
            return Text(f"{duration(now - began)} so far")
        left = (task.total - done) * (ended - began) / (done - before) - (now - ended)
        return Text(f"about {duration(max(left, 0.0))} left")
