"""The processes of a run, by torchrun's environment variables (available before torch is imported)."""

from __future__ import annotations

import gc
import os
import sys
from datetime import timedelta
from functools import cache
from typing import Any


def rank() -> int:
    """Return the rank of this process, 0 if it is the only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return the number of processes of the run on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def accelerators(*, use_cpu: bool = False) -> int:
    """Return the number of accelerators that this process sees, 1 if there is none or they are not to be used."""
    import torch

    return 1 if use_cpu else max(torch.accelerator.device_count(), 1)


def each_rank(*values: float) -> list[list[float]]:
    """Return the numbers of every rank, each of which must call it with as many; no device is waited for."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return [[*map(float, values)]]
    box = torch.zeros(dist.get_world_size(), len(values), dtype=torch.float64)
    box[dist.get_rank()] = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(box, group=None if "gloo" in dist.get_backend() else patient_group())
    found: list[list[float]] = box.tolist()
    return found


@cache
def patient_group() -> Any:
    """Return a group of all processes in which one may keep the others waiting for days: by a lock, or a large model."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=timedelta(days=7))


def leave() -> None:
    """Destroy the process group before the interpreter exits.

    Otherwise gloo's threads may touch a dead interpreter (an abort at exit, pytorch#179291). Wrappers must be gone first:
    the last reference to a group, dropped by DDP's reducer, waits with the interpreter lock held for a thread that may be
    waiting for the lock (pytorch#56297).
    """
    if world_size() == 1 or "torch" not in sys.modules:
        return
    import torch.distributed as dist

    patient_group.cache_clear()
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
