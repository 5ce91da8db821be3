"""Evaluation in the middle of training: dropout off, no gradients, random states restored."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from alignkit.system.sharded import reshard
from alignkit.system.together import from_first, sharers


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode, without gradients, and restore the mode of every module afterwards.

    Sharded models keep no whole parameters.
    """
    training = [module for model in models for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
        torch.clear_autocast_cache()  # casts that were made without gradient
        for model in models:
            reshard(model)


@contextmanager
def cast_once() -> Iterator[None]:
    """Keep what autocast casts of trained weights for the block, in which they do not change."""
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


@contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """Evaluate models without a trace: like :func:`evaluating`, and every random state is restored as well.

    The random states are those of Python, NumPy, and torch on the CPU and on every CUDA device.
    """
    initialised = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if initialised else ()
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices), evaluating(*models):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def drawn_alike() -> Iterator[None]:
    """Let every process draw the first one's random numbers in the block; with one process nothing changes."""
    if sharers() == 1:
        yield
        return
    with_gradients = torch.is_grad_enabled()
    with undisturbed(), torch.set_grad_enabled(with_gradients):
        python, numpy, cpu = from_first((random.getstate(), np.random.get_state(), torch.get_rng_state()))
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        yield
