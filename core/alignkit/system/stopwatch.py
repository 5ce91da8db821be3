"""Seconds and CPU seconds of each stage of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """The time spent in named stages; a stage inside another is not part of the outer one."""

    def __init__(self) -> None:
        self._spent: dict[str, list[float]] = {}
        self._inner: list[list[float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as part of ``name``."""
        before = _now()
        self._inner.append([0.0, 0.0])
        try:
            yield
        finally:
            whole = [now - then for now, then in zip(_now(), before, strict=True)]
            inside = self._inner.pop()
            spent = self._spent.setdefault(name, [0.0, 0.0])
            for k in range(2):
                spent[k] += whole[k] - inside[k]
                if self._inner:
                    self._inner[-1][k] += whole[k]

    def added_to(self, earlier: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """Return ``{stage: {seconds, cpu_seconds}}``, plus those of the interrupted part of the run."""
        total = {name: dict(spent) for name, spent in earlier.items()}
        for name, spent in self._spent.items():
            before = total.get(name, {"seconds": 0.0, "cpu_seconds": 0.0})
            total[name] = {key: before[key] + more for key, more in zip(("seconds", "cpu_seconds"), spent, strict=True)}
        return total


def _now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()
