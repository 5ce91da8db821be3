"""Tasks of scheduler tests: small functions that processes anywhere can import."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from alignkit import Task
from alignkit.errors import InterruptedRun
from alignkit.system.signals import Terminated, terminable


def task(path: Path, work: object) -> Task:
    return Task(path.name, partial(work, path), path)  # type: ignore[arg-type]


def second_time(path: Path) -> None:
    """Finish at the second attempt; at the first, wait until a signal or the loss of the machine ends it."""
    path.mkdir(exist_ok=True)
    if (path / "first").exists():
        (path / "second").touch()
        return
    (path / "part").write_text(f"{os.getpid()} {os.getppid()}")
    (path / "part").rename(path / "first")
    try:
        with terminable():
            for _ in range(6000):
                time.sleep(0.05)
    except Terminated as error:
        (path / "saved").touch()
        raise InterruptedRun("checkpoint saved", error.number) from error


def appears(path: Path) -> None:
    """Wait for a file."""
    until = time.monotonic() + 600
    while not path.exists():
        assert time.monotonic() < until, f"{path} does not appear"
        time.sleep(0.05)


def gone(process: int) -> bool:
    """Return whether a process has ended, waiting for that."""
    for _ in range(1200):
        state = Path(f"/proc/{process}/stat")
        with suppress(OSError):
            if not state.exists() or ") Z" in state.read_text():
                return True
        time.sleep(0.05)
    return False
