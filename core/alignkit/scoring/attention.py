"""Attention over a packed row on the CPU, registered with transformers under the name :data:`NAME`.

Each block runs PyTorch's CPU flash attention; completions merge what they saw of the prompt with what they saw of themselves
by log-sum-exp (arXiv:2205.14135, section 3.1). The backward of a block needs only the merged output and log-sum-exp, so no
attention matrix is kept. Key and value heads shared by several query heads are read in place, never repeated.

Letters in shapes: ``T`` tokens, ``H`` query heads, ``K`` key/value heads, ``R = H / K``, ``D`` head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from alignkit.scoring.blocks import Block, blocks
from alignkit.scoring.plan import Plan

NAME = "alignkit_packed"
"""The attention implementation's name in transformers' registry."""

PLAN_ARGUMENT = "alignkit_plan"
"""The keyword under which the plan travels through the backbone to its attention layers."""

# Arguments some models hand their attention function and which the blocks know nothing of.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "head_mask")


def _kernels() -> tuple[Any, Any]:
    """Return PyTorch's CPU flash attention and its backward, looked up when used: both are private, and may be missing."""
    aten = torch.ops.aten
    try:
        return (
            aten._scaled_dot_product_flash_attention_for_cpu,
            aten._scaled_dot_product_flash_attention_for_cpu_backward,
        )
    except AttributeError as error:
        raise NotImplementedError(f"torch {torch.__version__} has no CPU flash attention") from error


def register() -> None:
    """Make :func:`packed_attention` known to transformers; without a plan it is transformers' own SDPA."""
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
    """Attention function as transformers calls it: query ``[1, H, T, D]``, key and value ``[1, K, T, D]`` -> ``[1, T, H, D]``.

    With a plan among ``kwargs`` the mask is ignored: the plan says who attends to whom.
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
            raise NotImplementedError(f"packed attention has no {name}")
    if dropout:
        raise NotImplementedError("packed attention has no dropout: switch the model's attention dropout off")
    # Under autocast rotary embeddings hand back float32 queries and keys beside low-precision values.
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
        lse: torch.Tensor | None = None
        flash_attention, ctx.flash_attention_backward = _kernels()
        for part in parts:
            rows, columns = slice(part.q0, part.q1), slice(part.k0, part.k1)
            mask = _window_mask(part, window, query)
            seen, total = flash_attention(
                q[:, :, rows], k[:, :, columns], v[:, :, columns], 0.0, part.causal, attn_mask=mask, scale=scale
            )
            if lse is None:
                lse = total.new_empty(q.shape[:3])
            if part.merge:
                _merge(o[:, :, rows], lse[:, :, rows], seen, total)
            else:
                o[:, :, rows] = seen
                lse[:, :, rows] = total
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
            a, b, c = ctx.flash_attention_backward(
                g[:, :, rows],
                q[:, :, rows],
                k[:, :, columns],
                v[:, :, columns],
                o[:, :, rows],
                lse[:, :, rows],
                0.0,
                part.causal,
                attn_mask=_window_mask(part, ctx.window, query),
                scale=ctx.scale,
            )
            d_q[:, :, rows] += a
            d_key[0, :, columns] += b.sum(1)
            d_value[0, :, columns] += c.sum(1)
        return d_query, d_key, d_value, None, None, None


def _grouped(states: torch.Tensor, heads: int) -> torch.Tensor:
    """View ``[1, H, T, D]`` as ``[K, R, T, D]``: the heads that share a key stand together."""
    return torch.unflatten(states[0], 0, (heads, -1))


def _shared(query: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """View ``[1, K, T, D]`` as ``[K, R, T, D]`` without copying: R heads read the same memory."""
    heads = states.shape[1]
    return states.transpose(0, 1).expand(heads, query.shape[1] // heads, -1, -1)


def _merge(out: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor) -> None:
    """Merge attention to further keys into ``out [K, R, n, D]`` and ``lse [K, R, n]``, in place."""
    total = torch.logaddexp(lse, other_lse)
    share = (other_lse - total).exp_().unsqueeze(-1).to(out.dtype)
    out.lerp_(other, share)  # out + share * (other - out): the shares of the two parts sum to one
    lse.copy_(total)


def _window_mask(part: Block, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """Return the additive mask ``[1, 1, queries, keys]`` of a block cut by the window (None: nothing is cut)."""
    if part.offset is None or window is None:
        return None
    queries = torch.arange(part.offset, part.offset + part.q1 - part.q0, device=like.device)
    distance = queries[:, None] - torch.arange(part.k1 - part.k0, device=like.device)
    hidden = (distance < 0) | (distance >= window)
    return like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[None, None]
