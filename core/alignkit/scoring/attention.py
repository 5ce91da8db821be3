"""Attention over a packed row on the CPU, registered with transformers under the name :data:`NAME`.

Each block runs PyTorch's CPU flash attention. A completion's attention to the prompt and to itself are merged by their
log-sum-exps (arXiv:2205.14135, section 3.1). The backward of a block needs only the merged output and log-sum-exp, so no
attention matrix is stored. Key and value heads shared by several query heads are read in place, not repeated.

Letters in shapes: ``T`` tokens, ``H`` query heads, ``K`` key/value heads, ``R = H / K``, ``D`` head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from alignkit.scoring.blocks import Block, blocks
from alignkit.scoring.plan import Plan

NAME = "alignkit_packed"
"""Name of the attention implementation in transformers' registry."""

PLAN_ARGUMENT = "alignkit_plan"
"""Keyword argument that carries the plan through the backbone to its attention layers."""

# Arguments that some models pass to their attention function and that the blocks do not support.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "head_mask")


def _kernels() -> tuple[Any, Any]:
    """Return PyTorch's CPU flash attention and its backward. Both are private and may be missing: look them up when used."""
    name = "_scaled_dot_product_flash_attention_for_cpu"
    try:
        return getattr(torch.ops.aten, name), getattr(torch.ops.aten, f"{name}_backward")
    except AttributeError as error:
        raise NotImplementedError(f"torch {torch.__version__} has no CPU flash attention") from error


def register() -> None:
    """Register :func:`packed_attention` with transformers; without a plan it runs transformers' SDPA."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention as transformers calls it: query ``[1, H, T, D]``, key and value ``[1, K, T, D]`` -> ``[1, T, H, D]``.

    If ``kwargs`` has a plan, the plan determines which tokens attend to which, and the mask is ignored.
    Raises ``NotImplementedError`` for what the blocks cannot compute (dropout, soft-capping, sinks, position biases).
    """
    plan: Plan | None = kwargs.pop(PLAN_ARGUMENT, None)
    if plan is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"packed attention does not support {name}")
    if dropout:
        raise NotImplementedError("packed attention does not support dropout: switch off the model's attention dropout")
    # Under autocast, rotary embeddings return float32 queries and keys while the values have low precision.
    query, key = query.to(value.dtype), key.to(value.dtype)
    out = _PackedAttention.apply(query, key, value, blocks(plan.segments, sliding_window), sliding_window, scaling)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


class _PackedAttention(torch.autograd.Function):
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
        q, k, v, o = _grouped(query, heads), _shared(query, key), _shared(query, value), _grouped(out, heads)
        lse = torch.empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
        flash_attention, ctx.flash_attention_backward = _kernels()
        for part in parts:
            rows, columns = slice(part.q0, part.q1), slice(part.k0, part.k1)
            mask = _window_mask(part, window, query)
            output, total = flash_attention(
                q[:, :, rows], k[:, :, columns], v[:, :, columns], 0.0, part.causal, attn_mask=mask, scale=scale
            )
            if part.merge:
                _merge(o[:, :, rows], lse[:, :, rows], output, total)
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
        q, k, v = _grouped(query, heads), _shared(query, key), _shared(query, value)
        o, g, d_q = _grouped(out, heads), _grouped(grad, heads), _grouped(d_query, heads)
        for part in ctx.parts:
            rows, columns = slice(part.q0, part.q1), slice(part.k0, part.k1)
            mask = _window_mask(part, ctx.window, query)
            states = g[:, :, rows], q[:, :, rows], k[:, :, columns], v[:, :, columns], o[:, :, rows], lse[:, :, rows]
            a, b, c = ctx.flash_attention_backward(*states, 0.0, part.causal, attn_mask=mask, scale=ctx.scale)
            d_q[:, :, rows] += a
            d_key[0, :, columns] += b.sum(1)
            d_value[0, :, columns] += c.sum(1)
        return d_query, d_key, d_value, None, None, None


def _grouped(states: torch.Tensor, heads: int) -> torch.Tensor:
    """View ``[1, H, T, D]`` as ``[K, R, T, D]``: query heads that share a key head are grouped."""
    return torch.unflatten(states[0], 0, (heads, -1))


def _shared(query: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """View ``[1, K, T, D]`` as ``[K, R, T, D]`` without copying: R heads read the same memory."""
    heads = states.shape[1]
    return states.transpose(0, 1).expand(heads, query.shape[1] // heads, -1, -1)


def _merge(out: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor) -> None:
    """Merge attention to further keys into ``out [K, R, n, D]`` and ``lse [K, R, n]``, in place."""
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
