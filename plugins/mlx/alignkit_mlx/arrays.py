"""MLX arrays from torch tensors and back, and the trained weights of a model by torch's names."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx.utils import tree_flatten, tree_unflatten


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


class Weights:
    """The trained weights of a model: places in its tree of parameters, by their names in torch's ``state_dict``."""

    def __init__(self, model: Any, paths: Mapping[str, str]) -> None:
        self.model, self.paths = model, dict(paths)
        model.freeze()
        for path in self.paths.values():
            owner, _, key = path.rpartition(".")
            dict(model.named_modules())[owner].unfreeze(keys=[key], recurse=False)

    def get(self) -> list[mx.array]:
        found = flat(self.model.parameters())
        return [found[path] for path in self.paths.values()]

    def put(self, arrays: Sequence[mx.array]) -> None:
        self.model.update(tree_unflatten(list(zip(self.paths.values(), arrays, strict=True))))

    def to_torch(self, arrays: Sequence[mx.array]) -> dict[str, torch.Tensor]:
        """Return arrays of the weights' shapes by torch's names; torch has the transposed matrices of an adapter."""
        pairs = zip(self.paths.items(), arrays, strict=True)
        return {name: to_torch(array.T if _transposed(path) else array) for (name, path), array in pairs}

    def from_torch(self, tensors: Mapping[str, torch.Tensor]) -> list[mx.array]:
        """Return what :meth:`to_torch` was given."""
        named = [(path, tensors[name]) for name, path in self.paths.items()]
        arrays = [from_torch(tensor.T if _transposed(path) else tensor) for path, tensor in named]
        mx.eval(arrays)
        return arrays


def flat(tree: Any) -> dict[str, mx.array]:
    """Return the arrays of a tree by their paths."""
    return dict(tree_flatten(tree))


def _transposed(path: str) -> bool:
    return path.endswith((".lora_a", ".lora_b"))
