"""Progress of the running tasks, read from their run directories, wherever they are carried out."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

INTERVAL = 10.0
"""Seconds between two looks."""

_TAIL = 65536
"""Bytes read from the end of a metrics file."""


class Progress:
    """Says the latest step of every running task from time to time, in a thread."""

    def __init__(self, say: Callable[[str], None], interval: float = INTERVAL) -> None:
        self._say, self._interval = say, interval
        self._running: dict[str, Path] = {}
        self._said: dict[str, int] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def started(self, name: str, directory: Path) -> None:
        """Follow a task's metrics."""
        self._running[name] = directory / "metrics.jsonl"

    def ended(self, name: str) -> None:
        """Follow it no longer."""
        self._running.pop(name, None)

    def _watch(self) -> None:
        while not self._end.wait(self._interval):
            for name, path in list(self._running.items()):
                latest = _latest(path)
                if latest and self._said.get(name) != latest["step"]:
                    self._said[name] = latest["step"]
                    self._say(f"{name}: {_line(latest)}")


def _latest(path: Path) -> dict[str, Any] | None:
    """Return the last complete record with a loss of a metrics file that is being written, if there is one."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        for line in reversed(file.read().splitlines()):
            with suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int) and "loss" in record:
                    return record
    return None


def _line(record: dict[str, Any]) -> str:
    numbers = {key: record.get(key) for key in ("epoch", "loss", "reward")}
    shown = [f"{key} {value:.4g}" for key, value in numbers.items() if isinstance(value, int | float)]
    return f"step {record['step']}, {', '.join(shown)}"
