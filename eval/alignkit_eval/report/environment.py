"""The environment recorded with a run: versions, git revision, hardware, platform."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from alignkit.system.environment import versions


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
