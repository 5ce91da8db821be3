"""The environment of a process: versions of packages, its device, and its peak memory."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    *("alignkit", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "safetensors"),
    *("numpy", "lm_eval"),
)


@cache
def versions() -> dict[str, str]:
    """Return the versions of python and of the packages numbers depend on, without importing them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def device_name(*, use_cpu: bool = False) -> str:
    """Return the name of the device that this process trains on."""
    import torch

    if use_cpu or not torch.accelerator.is_available():
        return "cpu"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else str(torch.accelerator.current_accelerator())


def forget_peak_memory() -> None:
    """Begin a new peak, so that a run's does not depend on what ran before it in this process (off Linux: on the GPU only)."""
    import ctypes
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that glibc keeps is resident
        Path("/proc/self/clear_refs").write_text("5")  # see proc_pid_clear_refs(5)


def peak_memory_gb() -> float:
    """Return the peak memory in GiB since it was last forgotten: allocated on the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # ru_maxrss begins with the memory of the process that started this one, and is never forgotten.
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**20
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def memory_gib() -> float:
    """Return the memory of this machine in GiB, that of its GPUs included."""
    import torch

    gpus = (torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    return (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + sum(gpus)) / 2**30
