"""The environment recorded with a run: versions, git revision, hardware, platform."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("alignkit", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "safetensors"),
    *("numpy", "lm_eval"),
)


def environment(directory: Path | None = None) -> dict[str, Any]:
    """Return ``versions``, ``git`` (of ``directory``, by default the working one), ``hardware`` and ``platform``."""
    hardware = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
    }
    git = git_revision(directory or Path.cwd())
    return {"versions": versions(), "git": git, "hardware": hardware, "platform": platform.platform()}


@cache
def versions() -> dict[str, str]:
    """Return the versions of python and of the packages numbers depend on, without importing them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def git_revision(directory: Path) -> dict[str, Any] | None:
    """Return ``revision`` and ``dirty`` of the repository that contains ``directory``; None without one, or without git."""
    revision = _git(directory, "rev-parse", "HEAD")
    if not revision:
        return None
    changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": None if changes is None else bool(changes)}


def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(directory), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, no repository, or one that takes too long
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    named = re.search(r"^model name\s*:\s*(.*\S)", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [{"name": device.name, "memory": device.total_memory} for device in devices]


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
