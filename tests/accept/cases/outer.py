"""Scripts in a directory of the user's: each is run, and its output kept beside what its first line says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.accept.commands import environment

LIMIT = 600
"""Seconds a script may take."""
KEPT = 6000
"""Characters kept of the end of a script's output."""


def run_scripts(directory: Path, work: Path, models: Path) -> list[dict[str, Any]]:
    """Run every ``*/run.sh`` of a copy of ``directory`` with ``$WORK`` set and the tiny models in ``$WORK/models``."""
    copy = shutil.copytree(directory, work / "copy")
    for path in [copy, *copy.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)
    return [_run(script, work / script.parent.name, models) for script in sorted(copy.glob("*/run.sh"))]


def _run(script: Path, work: Path, models: Path) -> dict[str, Any]:
    shutil.copytree(models, work / "models")
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    values = environment() | {"WORK": str(work), "PATH": search, "MODEL": str(models / "tiny")}
    try:
        done = subprocess.run(
            ["bash", str(script)],
            env=values,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT,
            check=False,
        )
        seen = f"exit code {done.returncode}\n{(done.stdout + done.stderr)[-KEPT:]}"
        traceback = "Traceback (most recent call last)" in seen and "Broken pipe" not in seen  # of head
    except subprocess.TimeoutExpired:
        seen, traceback = f"still running after {LIMIT} s", True
    says = script.read_text().splitlines()[0].lstrip("# ")
    # What a script must show is for a reader to judge; a traceback or an endless run is wrong in any case.
    return {"name": script.parent.name, "expectation": says, "seen": seen, "passed": False if traceback else None}
