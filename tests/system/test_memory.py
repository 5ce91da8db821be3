"""Peak memory of a run: that of earlier runs in the process is forgotten."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import numpy as np, torch
from alignkit.system.environment import forget_peak_memory, peak_memory_gb
block = np.ones(2**26)  # 0.5 GiB
before = peak_memory_gb()
del block
assert peak_memory_gb() > before - 0.01  # the kernel counts pages in batches
forget_peak_memory()
assert peak_memory_gb() < before - (0.2 if sys.platform == "linux" else 0), (before, peak_memory_gb())
"""


def test_a_peak_does_not_hold_that_of_what_ran_before() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
