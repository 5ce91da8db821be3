"""A small calculation that a kernel must get right on its device, gradients included, before it is used there."""

from __future__ import annotations

from functools import lru_cache

import torch
from alignkit.contract import AttentionKernel, AttentionLayer, Layout, Segment
from alignkit.errors import first_line

from alignkit_attention.visible import visible

_SEGMENTS = (Segment(0, 11, (9, 14)), Segment(34, 6, (23, 2, 5)), Segment(70, 7, ()))
_TOKENS = 77
_LIMIT = 12
"""Window and chunk of the calculation, which cut its sequences."""


def trial(kernel: AttentionKernel, layer: AttentionLayer) -> str | None:
    """Return why a kernel cannot be used: what it raised, or by how much it differs from dense attention (None: it agrees).

    The scorer's probe compares log-probabilities, without gradients; this also compares gradients. On the CPU the tests do.
    """
    return None if layer.device == "cpu" else _trial(kernel, layer)


@lru_cache
def _trial(kernel: AttentionKernel, layer: AttentionLayer) -> str | None:
    layer = layer._replace(
        window=layer.window and min(layer.window, _LIMIT), chunk=layer.chunk and min(layer.chunk, _LIMIT)
    )
    device = torch.device(layer.device)
    draw = torch.Generator().manual_seed(0)
    sizes = (layer.heads, layer.key_heads, layer.key_heads, layer.heads)
    *states, weights = (
        torch.randn(1, heads, _TOKENS, layer.head_size, generator=draw).to(device, layer.dtype) for heads in sizes
    )
    layout = Layout(_SEGMENTS)
    try:
        with torch.enable_grad(), torch.autocast(layer.device, enabled=False):
            query, key, value = (state.requires_grad_() for state in states)
            got = kernel.attend(query, key, value, layout, layer)
            found = [got, *torch.autograd.grad(got, (query, key, value), weights)]
            query, key, value = (state.detach().float().requires_grad_() for state in states)
            out = dense(query, key, value, layout, layer)
            wanted = [out, *torch.autograd.grad(out, (query, key, value), weights.float())]
    except Exception as error:  # devices and compilers raise all kinds of errors
        return f"fails: {type(error).__name__}: {first_line(error)}"
    bound = 1e-3 if layer.dtype == torch.float32 else 0.05
    for what, a, b in zip(("output", "gradient", "gradient", "gradient"), found, wanted, strict=True):
        difference = float((a.detach().float() - b.detach()).abs().max() / b.detach().abs().max())
        if not difference <= bound:
            return f"differs from dense attention in its {what} by {difference:.1g} of the largest number"
    return None


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, layer: AttentionLayer
) -> torch.Tensor:
    """Return attention ``[1, H, T, D]`` with the whole matrix of scores, the definition that kernels are compared with."""
    groups = layer.heads // layer.key_heads
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * (layer.scale or layer.head_size**-0.5)
    if layer.softcap is not None:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    index = torch.arange(query.shape[2], device=query.device)
    seen = visible(layout, query.device, layer.window, layer.chunk)(index, index, index[:, None], index[None])
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value
