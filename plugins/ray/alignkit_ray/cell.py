"""What a Ray worker does with a task."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout

import alignkit
from alignkit import Outcome, Task, carry_out


def cell(task: Task, threads: int, variables: Mapping[str, str], version: str) -> Outcome:
    """Carry out a task in this worker; what it prints goes to stderr, which Ray shows at the driver."""
    host = platform.node()
    if version != alignkit.__version__:
        error = f"{host} has alignkit {alignkit.__version__}, and the driver {version}: install the same version"
        return Outcome(task.name, "failed", error=error, exit_code=2, host=host)
    os.environ.update(variables)
    with redirect_stdout(sys.stderr):
        return carry_out(task, threads)
