"""Peak memory of one step above the resident baseline, with each side in a fresh process: ``python -m bench.memory``.

The process builds one side, takes one optimizer step (so that optimizer state and library buffers exist), frees the
gradients, and records the resident memory: weights, optimizer state, libraries. Then it runs the step's forward and backward
passes. The result is the peak above this baseline: activations, logits and gradients.

On the CPU, the kernel's high-water mark is reset (``/proc/self/clear_refs``) before the step and read after it (``VmHWM``).
:data:`ALLOCATOR` makes the allocator map blocks of more than a few pages and unmap them when freed, so that the mark shows
the memory in use, not what the allocator keeps. On a GPU, it is PyTorch's count of allocated bytes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cells import BenchCell
from bench.process import prepare

ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}
"""glibc settings of the measuring process; by default glibc keeps freed memory and adapts the threshold."""

STATUS = Path("/proc/self/status")


def peak(cell: BenchCell, side: str, work: str) -> int | None:
    """Return the peak in bytes of ``side`` (ours, trl) for ``work`` (step, reference); None if it cannot be measured.

    Raises ``RuntimeError`` with the end of its output if the measuring process fails.
    """
    if cell.device == "cpu" and not kernel_counts():
        return None
    request = json.dumps({"cell": cell.to_json(), "side": side, "work": work})
    command = [sys.executable, "-m", "bench.memory", request]
    environment = os.environ | (ALLOCATOR if cell.device == "cpu" else {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {cell.name} ({side}) failed:\n{done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def kernel_counts() -> bool:
    """Return whether the peak memory of a process can be reset and read here."""
    return sys.platform == "linux" and os.access("/proc/self/clear_refs", os.W_OK)


def main(request: dict[str, Any]) -> int:
    """Measure in this process and return the peak in bytes."""
    prepare(threads=1)
    import torch

    from bench.models import trainable
    from bench.sides import SIDES

    cell = BenchCell.from_json(request["cell"])
    side = SIDES[request["side"]](cell, 1)
    optimizer = torch.optim.AdamW(trainable(side.model).values(), lr=1e-6)
    work: Callable[[int], object] = side.reference
    if request["work"] == "step":
        work = side.step
        work(0)
        optimizer.step()
        optimizer.zero_grad()
    else:
        work(0)
    return above_resident(lambda: work(0), cell.device)


def above_resident(work: Callable[[], object], device: str) -> int:
    """Run ``work`` and return the most bytes in use meanwhile, above those in use before."""
    return (_on_gpu if device == "cuda" else _on_cpu)(work)


def _on_gpu(work: Callable[[], object]) -> int:
    import torch

    gc.collect()
    torch.cuda.synchronize()
    resident = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - resident)


def _on_cpu(work: Callable[[], object]) -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    resident = _status("VmRSS")
    work()
    return _status("VmHWM") - resident


def _status(field: str) -> int:
    """Return a field of ``/proc/self/status`` in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{STATUS} has no {field}")
    return int(found[1]) * 1024


if __name__ == "__main__":
    print(json.dumps({"peak": main(json.loads(sys.argv[1]))}))
