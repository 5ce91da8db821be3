"""Attention block by block with PyTorch's CPU flash attention.

The backward of a block needs only the merged output and log-sum-exp, so no attention matrix is stored. Key and value heads
shared by several query heads are read in place, not repeated.

Letters in shapes: ``T`` tokens, ``H`` query heads, ``K`` key/value heads, ``R = H / K``, ``D`` head size.
"""

from __future__ import annotations

from typing import Any

import torch
from alignkit.contract import AttentionKernel, AttentionLayer, Layout
from torch.autograd.function import once_differentiable

from alignkit_attention.blocks import Block, blocks
from alignkit_attention.outline import Extra, Outline

SHORT = 256
"""Queries up to which a block of half precision is computed in float32.

For products of half precision oneDNN makes kernels for every length of a block, about 0.65 MB each, and keeps 1,024 of them.
In float32 there are none, and short blocks are faster.
"""


def _operators() -> tuple[Any, Any]:
    """Return PyTorch's CPU flash attention and its backward. Both are private and may be missing: look them up when used."""
    name = "_scaled_dot_product_flash_attention_for_cpu"
    return getattr(torch.ops.aten, name), getattr(torch.ops.aten, f"{name}_backward")


class Blocks(AttentionKernel):
    """CPU flash attention, one call per block."""

    devices = frozenset({"cpu"})
    order = 10
    family = "flash"

    def refusal(self, layer: AttentionLayer) -> str | None:
        try:
            _operators()
        except AttributeError:
            return f"needs CPU flash attention, which torch {torch.__version__} has not"
        return "does not support softcap" if layer.softcap is not None else None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, layer: AttentionLayer
    ) -> torch.Tensor:
        geometry = layout.segments, layer.window, layer.chunk
        parts = layout.once(("blocks", *geometry[1:]), lambda: blocks(*geometry))
        out: torch.Tensor = _BlockAttention.apply(query, key, value, parts, layer.window, layer.scale)  # type: ignore[no-untyped-call]
        return out

    def outline(self) -> AttentionKernel:
        return Outline(self, _extra)


BLOCKS = Blocks()


def _extra(layout: Layout, _tokens: int, layer: AttentionLayer) -> Extra:
    """Return the bytes of the largest block: its mask, its states if they are cast, and gradients for each query head."""

    def size(part: Block) -> int:
        queries, keys = part.q1 - part.q0, part.k1 - part.k0
        cast = _is_cast(queries, layer.dtype)
        made = (layer.heads * (queries + 2 * keys) + layer.key_heads * keys) * layer.head_size
        made += (3 * layer.heads * queries + 2 * layer.key_heads * keys) * layer.head_size * cast
        made += 4 * queries * keys * (part.offset is not None)
        return made * (4 if cast else layer.dtype.itemsize)

    return Extra(passing=max(map(size, blocks(layout.segments, layer.window, layer.chunk))))


class _BlockAttention(torch.autograd.Function):
    """Exact attention block by block, query ``[1, H, T, D]``, key and value ``[1, K, T, D]`` -> ``[1, H, T, D]``."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        parts: tuple[Block, ...],
        window: int | None,
        scale: float | None,
    ) -> torch.Tensor:
        heads = key.shape[1]
        out = torch.empty_like(query)
        o = _grouped(out, heads)
        lse = torch.empty(o.shape[:3], dtype=torch.promote_types(o.dtype, torch.float32), device=o.device)
        flash_attention, ctx.flash_attention_backward = _operators()
        for part in parts:
            rows = slice(part.q0, part.q1)
            q, k, v = _of_block(part, query, key, value)
            mask = _window_mask(part, window, q)
            output, total = flash_attention(q, k, v, 0.0, part.causal, attn_mask=mask, scale=scale)
            if part.merge:
                merge(o[:, :, rows], lse[:, :, rows], output.to(o.dtype), total)
            else:
                o[:, :, rows], lse[:, :, rows] = output, total
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.parts, ctx.window, ctx.scale = parts, window, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        heads = key.shape[1]
        d_query, d_key, d_value = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        o, g, d_q = _grouped(out, heads), _grouped(grad, heads), _grouped(d_query, heads)
        for part in ctx.parts:
            rows, columns = slice(part.q0, part.q1), slice(part.k0, part.k1)
            q, k, v = _of_block(part, query, key, value)
            mask = _window_mask(part, ctx.window, q)
            states = g[:, :, rows].to(q.dtype), q, k, v, o[:, :, rows].to(q.dtype), lse[:, :, rows]
            a, b, c = ctx.flash_attention_backward(*states, 0.0, part.causal, attn_mask=mask, scale=ctx.scale)
            d_q[:, :, rows] += a
            d_key[0, :, columns] += b.sum(1)
            d_value[0, :, columns] += c.sum(1)
        return d_query, d_key, d_value, None, None, None


def _is_cast(queries: int, dtype: torch.dtype) -> bool:
    """Whether a block is computed in float32 instead of its own type."""
    return queries <= SHORT and dtype in (torch.bfloat16, torch.float16)


def _of_block(
    part: Block, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the queries ``[K, R, q, D]``, keys and values ``[K, R, k, D]`` of a block, in the type to compute it in."""
    dtype = torch.float32 if _is_cast(part.q1 - part.q0, query.dtype) else query.dtype
    queries = query[:, :, part.q0 : part.q1].to(dtype)
    keys, values = (states[:, :, part.k0 : part.k1].to(dtype) for states in (key, value))
    return _grouped(queries, key.shape[1]), _shared(queries, keys), _shared(queries, values)


def _grouped(states: torch.Tensor, heads: int) -> torch.Tensor:
    """View ``[1, H, T, D]`` as ``[K, R, T, D]``: query heads that share a key head are grouped."""
    return torch.unflatten(states[0], 0, (heads, -1))


def _shared(query: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """View ``[1, K, T, D]`` as ``[K, R, T, D]`` without copying: R heads read the same memory."""
    heads = states.shape[1]
    return states.transpose(0, 1).expand(heads, query.shape[1] // heads, -1, -1)


def merge(out: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor) -> None:
    """Merge attention to further keys into ``out [..., n, D]`` and ``lse [..., n]``, in place."""
    total = torch.logaddexp(lse, other_lse)
    share = (other_lse - total).exp_().unsqueeze(-1).to(out.dtype)
    out.lerp_(other, share)  # out + share * (other - out): the two shares sum to one
    lse.copy_(total)


def _window_mask(part: Block, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """Return the additive mask ``[1, 1, queries, keys]`` of a block that the window cuts (None: it cuts nothing)."""
    if part.offset is None or window is None:
        return None
    queries = torch.arange(part.offset, part.offset + part.q1 - part.q0, device=like.device)
    distance = queries[:, None] - torch.arange(part.k1 - part.k0, device=like.device)
    hidden = (distance < 0) | (distance >= window)
    return like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[None, None]
