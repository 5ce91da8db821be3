"""The accelerators of this machine, and their assignment to processes through ``CUDA_VISIBLE_DEVICES``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice

from alignkit import SchedulerSettings
from alignkit.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_devices() -> list[str]:
    """Return the accelerators that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    number = torch.cuda.device_count()
    named = [word.strip() for word in os.environ.get(VISIBLE, "").split(",") if word.strip()]
    return named[:number] if VISIBLE in os.environ else [str(i) for i in range(number)]


@contextmanager
def one_visible_device(devices: Sequence[str]) -> Iterator[None]:
    """Let this process use the first of several accelerators for the duration of the block: it checks, and trains nothing."""
    if len(devices) < 2:
        yield
        return
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = devices[0]
    try:
        yield
    finally:
        os.environ.pop(VISIBLE)
        if before is not None:
            os.environ[VISIBLE] = before


def environments(devices: Sequence[str], settings: SchedulerSettings) -> list[Mapping[str, str]]:
    """Return the environment variables of each process that carries out cells, one at a time.

    A process gets ``gpus_per_cell`` accelerators of its own, or shares one (0.5: with one other). Without that setting it
    gets one, and more ``jobs`` than accelerators share them in turn.

    >>> environments(["0", "1", "2"], SchedulerSettings(gpus_per_cell=1, jobs=2))
    [{'CUDA_VISIBLE_DEVICES': '0'}, {'CUDA_VISIBLE_DEVICES': '1'}]
    >>> environments(["4", "5", "6", "7"], SchedulerSettings(gpus_per_cell=2))
    [{'CUDA_VISIBLE_DEVICES': '4,5'}, {'CUDA_VISIBLE_DEVICES': '6,7'}]
    >>> environments(["0"], SchedulerSettings(gpus_per_cell=0.5)), environments([], SchedulerSettings(jobs=2))
    ([{'CUDA_VISIBLE_DEVICES': '0'}, {'CUDA_VISIBLE_DEVICES': '0'}], [{}, {}])

    Raises:
        ConfigError: there are too few accelerators.
    """
    share, jobs = settings.gpus_per_cell, settings.jobs
    if not devices and share:
        raise ConfigError(
            f"gpus_per_cell is {share:g}, and no accelerator is visible here: leave it out to train on the CPU"
        )
    if not devices or share == 0:
        return [{VISIBLE: ""} if devices else {}] * (jobs or 1)
    each = int(share) if share is not None and share >= 1 else 1
    if each > len(devices):
        raise ConfigError(f"gpus_per_cell is {each}, and {_accelerators(len(devices))} visible here")
    groups = [",".join(devices[i : i + each]) for i in range(0, len(devices) - each + 1, each)]
    sharing = int(1 / share + 1e-9) if share is not None and share < 1 else 1
    room = groups * sharing
    if share is not None and jobs is not None and jobs > len(room):
        raise ConfigError(
            f"jobs is {jobs}, and with {_accelerators(len(devices))} visible here and gpus_per_cell {share:g} there is room for "
            f"{len(room)}: lower one of them"
        )
    return [{VISIBLE: group} for group in islice(cycle(room), jobs or len(room))]


def _accelerators(number: int) -> str:
    return "1 accelerator is" if number == 1 else f"{number} accelerators are"
