"""Runs of several processes: the workers of a launcher, and what is left of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from alignkit.__main__ import main

from tests.helpers.forked import fork
from tests.helpers.forks import Process


def start(*arguments: str | Path, cwd: Path, **environment: str) -> Process:
    """Start the installed command, its stderr in ``cwd/err``, in a fork; so are the processes that it starts."""
    (cwd / "err").write_text("")
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    return fork(
        main_of, list(map(str, arguments)), files=[os.devnull, os.devnull, cwd / "err"], cwd=cwd, variables=variables
    )


def main_of(arguments: list[str]) -> int:
    """Carry out a command."""
    sys.argv = ["align", *arguments]
    return main()


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


def until(condition: Callable[[], object], process: Process | subprocess.Popen[str]) -> None:
    """Wait until ``condition`` holds, or the process has ended."""
    while not condition() and process.poll() is None:
        time.sleep(0.02)
