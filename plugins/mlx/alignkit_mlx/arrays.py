"""MLX arrays from torch tensors and back, and the trained weights of a model by torch's names."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch


def mlx_lm() -> Any:
    """Return mlx-lm, whose import would lower the number of files that this process may open."""
    limit, resource.setrlimit = resource.setrlimit, lambda *_: None
    try:
        import mlx_lm.generate
        import mlx_lm.utils

        return mlx_lm
    finally:
        resource.setrlimit = limit


def from_torch(tensor: torch.Tensor) -> mx.array:
    """Return a copy of a tensor."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # NumPy has no bfloat16
        return mx.array(tensor.view(torch.int16).numpy()).view(mx.bfloat16)
    return mx.array(tensor.numpy())


def to_torch(array: mx.array) -> torch.Tensor:
    """Return a copy of an array, which waits for its value."""
    if array.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(array.view(mx.int16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


class Weight(NamedTuple):
    """The place of a trained weight: an entry of a module, and its name in torch's ``state_dict``."""

    name: str
    module: nn.Module
    key: str
    transposed: bool = False
    """Whether torch stores the transposed matrix (the two matrices of an adapter)."""

    def read(self, array: mx.array) -> torch.Tensor:
        return to_torch(array.T if self.transposed else array)

    def written(self, tensor: torch.Tensor) -> mx.array:
        return from_torch(tensor.T if self.transposed else tensor)


@contextmanager
def placed(weights: Sequence[Weight], arrays: Sequence[mx.array]) -> Iterator[None]:
    """Let modules compute with other arrays for the block."""
    before = [weight.module[weight.key] for weight in weights]
    for weight, array in zip(weights, arrays, strict=True):
        weight.module[weight.key] = array
    try:
        yield
    finally:
        for weight, array in zip(weights, before, strict=True):
            weight.module[weight.key] = array
