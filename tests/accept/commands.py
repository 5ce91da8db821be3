"""Commands of the acceptance checks: they raise ``AssertionError`` on failure, and can be timed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "accept"
ALIGN = Path(sys.executable).parent / "align"


def environment() -> dict[str, str]:
    """Return the environment of a command: one thread, offline."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command, with ``variables`` in its environment, and return it with its output."""
    done = subprocess.run(
        [str(a) for a in arguments],
        cwd=cwd,
        env=environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(map(str, arguments))} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done


def timed(*arguments: str | Path, cwd: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command and return it with the CPU seconds it took, its child processes included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command(*arguments, cwd=cwd)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_tests(*selection: str, **variables: str) -> dict[str, Any]:
    """Run a part of the test suite and return pytest's summary; a skipped test is a failure here."""
    done = command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selection, cwd=ROOT, **variables)
    summary = done.stdout.strip().splitlines()[-1]
    if "skipped" in summary or "passed" not in summary:
        raise AssertionError(summary)
    return {"tests": summary}


def settings(**values: object) -> list[str]:
    """Return ``--set`` options; a double underscore in a key becomes a dot."""
    return [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
