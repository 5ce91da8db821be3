"""Runs of several processes: the workers of a launcher, and what is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.helpers.runs import ALIGN


def start(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start the installed command, its stderr in ``cwd/err``. It hears SIGHUP, also where the tests run under nohup."""
    with (cwd / "err").open("w") as err:
        return subprocess.Popen(
            [str(ALIGN), *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
            stdout=subprocess.DEVNULL,
            stderr=err,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )


def workers(launcher: int) -> dict[int, int]:
    """Return the process ids of a launcher's workers by rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    found = {}
    for child in children:
        words = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
        variables = dict(word.split("=", 1) for word in words if "=" in word)
        found[int(variables["RANK"])] = int(child)
    return found


def alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until ``condition`` holds, or the process has ended."""
    while not condition() and process.poll() is None:
        time.sleep(0.02)
