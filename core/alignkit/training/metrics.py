"""Sums and counts of what is logged, kept on the device."""

from __future__ import annotations

import torch
import torch.distributed as dist


class MetricSums:
    """Named (sum, count) pairs kept on the device and reduced over ranks only when they are read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.pairs: dict[str, torch.Tensor] = {}

    def add(self, name: str, total: torch.Tensor | float, count: float) -> None:
        """Add to one pair; ``total`` may be a tensor, which is not waited for."""
        pair = self.pairs.setdefault(name, torch.zeros(2, dtype=self.dtype, device=self.device))
        pair[0] += total.detach() if isinstance(total, torch.Tensor) else total
        pair[1] += count

    def drain(self) -> dict[str, tuple[float, float]]:
        """Return sums and counts over all ranks, and start anew. Every rank must call it."""
        names = sorted(self.pairs)
        if dist.is_initialized():  # a rank that had no rows knows no names: agree on them first
            box: list[list[str]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(box, names)
            names = sorted(set().union(*box))
        if not names:
            return {}
        zero = torch.zeros(2, dtype=self.dtype, device=self.device)
        table = torch.stack([self.pairs.get(name, zero) for name in names])
        if dist.is_initialized():
            dist.all_reduce(table)
        self.pairs = {}
        return {name: (total, count) for name, (total, count) in zip(names, table.tolist(), strict=True)}
