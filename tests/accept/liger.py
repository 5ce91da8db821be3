"""Acceptance check of ``train.use_liger_kernel`` with Liger's own kernels, run on a CPU by Triton's interpreter.

What is checked is in :mod:`tests.accept.kernels`, which runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.accept.commands import ROOT, command

PYTHON = os.environ.get("ALIGN_LIGER_PYTHON", sys.executable)
"""The interpreter of an environment with alignkit, triton and liger-kernel."""


def liger(work: Path) -> dict[str, Any]:
    """With Liger's kernels losses, gradients, evaluation and answers are the plain layers', or the kernel is refused by name."""
    found = subprocess.run([PYTHON, "-c", "import triton, liger_kernel.transformers"], capture_output=True, text=True)
    if found.returncode and "ModuleNotFoundError" in found.stderr:
        missing = "pip install triton 'liger-kernel>=0.8,<0.9', or name another one in ALIGN_LIGER_PYTHON"
        return {"skipped": f"{PYTHON} has no triton or no liger-kernel; {missing}"}
    done = command(PYTHON, "-m", "tests.accept.kernels", work, cwd=ROOT)
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen
