"""``align`` commands of the campaigns, in forks: a tenth of a second each, not six."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from tests.helpers.forked import fork

T = TypeVar("T")
R = TypeVar("R")

HOOK = Path(__file__).parent / "hook"


@dataclass(frozen=True)
class Ended:
    """How a command ended; ``code`` is minus the signal's number after a signal, None if it was stopped at its time limit."""

    arguments: Sequence[str]
    cwd: str
    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def error(self) -> str:
        """The error message, without its prefix; empty if there is none."""
        lines = self.err.splitlines()
        return next((line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")), "")

    def __str__(self) -> str:
        return f"align {' '.join(self.arguments)}: code {self.code}: {(self.error or self.err)[-600:]}"


class Align:
    """Runs commands one after the other."""

    def __call__(self, *arguments: str | Path, cwd: Path, timeout: float = 120.0, **environment: str) -> Ended:
        """Run ``align ARGUMENTS`` in ``cwd`` and return how it ended; ``environment`` is added to the process's."""
        given, began = [str(argument) for argument in arguments], time.monotonic()
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        path = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(os.devnull), *(Path(folder, name) for name in ("out", "err"))]
            process = fork(_work, given, files=files, cwd=cwd, variables=variables | environment, path=path)
            if (code := process.wait(timeout)) is None:
                process.kill()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what the command left running
            process.wait()
            out, err = (file.read_text(encoding="utf-8", errors="replace") for file in files[1:])
        return Ended(given, str(cwd), code, out, err, time.monotonic() - began)


def each(aligns: Sequence[Align], function: Callable[[Align, T], R], values: Sequence[T]) -> list[R]:
    """Return ``function(align, value)`` of every value, as many at a time as there are servers."""
    free: SimpleQueue[Align] = SimpleQueue()
    for align in aligns:
        free.put(align)

    def call(value: T) -> R:
        align = free.get()
        try:
            return function(align, value)
        finally:
            free.put(align)

    with ThreadPoolExecutor(len(aligns)) as pool:
        return list(pool.map(call, values))


def _work(arguments: list[str]) -> int:
    """Carry out a command as the installed one would."""
    os.setsid()
    sys.argv = ["align", *arguments]
    runpy.run_path(str(HOOK / "sitecustomize.py"))
    from alignkit.__main__ import main

    return main()
