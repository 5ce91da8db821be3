"""Peak memory of one step above what is resident anyway, each side in a fresh process: ``python -m bench.memory``.

The process builds one side, takes one whole optimizer step (so that optimizer state and scratch buffers of libraries
exist), frees the gradients, and notes what is resident: weights, optimizer state, libraries. Then it runs the step's forward
and backward passes. The result is the peak above that mark, so it holds activations, logits and the gradients themselves.

On the CPU resident memory is read from the kernel: its high-water mark is set back (``/proc/self/clear_refs``) before the
step and read after it (``VmHWM``). The allocator is told, by :data:`ALLOCATOR`, to map whatever is larger than a page or two
and to unmap it when it is freed, so that the mark shows what was alive at once, not what the allocator kept. On a GPU it is
PyTorch's own count of allocated bytes.
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
"""glibc's settings for the measuring process; its default keeps freed memory and moves the threshold at will."""

STATUS = Path("/proc/self/status")


def peak(cell: BenchCell, side: str, work: str) -> int | None:
    """Return the peak in bytes of ``side`` (ours, trl) at ``work`` (step, reference); None where it cannot be measured.

    Raises ``RuntimeError`` with the end of its output when the measuring process fails.
    """
    if cell.device == "cpu" and not _kernel_counts():
        return None
    request = json.dumps({"cell": cell.to_json(), "side": side, "work": work})
    command = [sys.executable, "-m", "bench.memory", request]
    environment = os.environ | (ALLOCATOR if cell.device == "cpu" else {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {cell.name} ({side}) failed:\n{done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def _kernel_counts() -> bool:
    return sys.platform == "linux" and os.access("/proc/self/clear_refs", os.W_OK)


def main(request: dict[str, Any]) -> int:
    """Measure in this process, and return the peak in bytes."""
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
    return (_on_gpu if cell.device == "cuda" else _on_cpu)(lambda: work(0))


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
    """Return a size from the kernel's account of this process, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{STATUS} has no {field}")
    return int(found[1]) * 1024


if __name__ == "__main__":
    print(json.dumps({"peak": main(json.loads(sys.argv[1]))}))
