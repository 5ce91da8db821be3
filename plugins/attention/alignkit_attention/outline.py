"""The memory of attention without attention: the tensors that a kernel makes, with nothing in them (``--dry-run``).

Flash attention keeps queries, keys, values, output and log-sum-exps for its backward, and no scores. So what it takes follows
from sizes alone, in one operation a layer instead of several for each block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from alignkit.contract import AttentionKernel, AttentionLayer, Layout


class Extra(NamedTuple):
    """What a kernel takes for a layer besides what flash attention keeps."""

    padding: int = 0
    """Tokens added to the row."""
    kept: int = 0
    """Numbers kept for the backward, in the layer's type."""
    passing: int = 0
    """Bytes that are made and freed in the backward."""


class Outline(AttentionKernel):
    """Makes the tensors of a kernel that keeps no scores; ``extra`` says what else it takes for a row of so many tokens."""

    def __init__(self, kernel: AttentionKernel, extra: Callable[[Layout, int, AttentionLayer], Extra]) -> None:
        self._kernel, self._extra = kernel, extra

    def refusal(self, layer: AttentionLayer) -> str | None:
        # What a device's operators refuse cannot be known without it; what the algorithm does, can.
        return self._kernel.refusal(layer._replace(device="cpu"))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, layer: AttentionLayer
    ) -> torch.Tensor:
        tokens = query.shape[2]
        extra = layout.once((self, layer), lambda: self._extra(layout, tokens, layer))
        if extra.padding:
            query, key, value = (torch.nn.functional.pad(x, (0, 0, 0, extra.padding)) for x in (query, key, value))
        out: torch.Tensor = _Empty.apply(query, key, value, extra)  # type: ignore[no-untyped-call]
        return out[:, :, :tokens]


class _Empty(torch.autograd.Function):
    """Query ``[1, H, T, D]``, key and value ``[1, K, T, D]`` -> ``[1, H, T, D]``."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, extra: Extra) -> torch.Tensor:
        lse = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, lse, query.new_empty(extra.kept))
        ctx.passing = extra.passing
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found = [torch.empty_like(state) for state in ctx.saved_tensors[:3]]
        grad.new_empty(ctx.passing, dtype=torch.uint8)
        return *found, None
