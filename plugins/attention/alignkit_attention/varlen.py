"""Flash attention over all sequences of a packed row in one launch (two, where completions share a prompt).

The first launch has every prompt with its first completion, and every other completion, as causal sequences. The second has
the other completions as queries and their prompts as keys; the two are merged by their log-sum-exps (arXiv:2205.14135,
section 3.1). The backward of each launch needs only the merged output and log-sum-exp. Under a sliding window there is one
launch, in which other completions have a copy of the prompt's last states as keys, because the operator measures the window
from the end of the keys.

Letters in shapes: ``T`` tokens, ``H`` query heads, ``K`` key/value heads, ``D`` head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from alignkit.contract import AttentionKernel, AttentionLayer, Layout
from alignkit.system.device import on_device
from torch.autograd.function import once_differentiable

from alignkit_attention.blocks import blocks
from alignkit_attention.trial import trial

Ranges = list[tuple[int, int]]


class Launch(NamedTuple):
    """Sequences of queries, and the keys that each attends to."""

    rows: torch.Tensor | None
    """Indices of the queries in the packed row (None: all, in order)."""
    columns: torch.Tensor | None
    """Indices of the keys (None: all, in order); an index may occur several times."""
    row_starts: torch.Tensor
    """First query of every sequence, and the number of queries, int32."""
    column_starts: torch.Tensor
    most_rows: int
    """Number of queries of the longest sequence, or more."""
    most_columns: int
    causal: bool
    """The last query of a sequence attends up to the last key, the one before it up to the one before it, and so on."""
    window: int | None = None


class Operators(NamedTuple):
    """Attention over sequences of different lengths, without autograd."""

    forward: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    """``(query [n, H, D], key [m, K, D], value, launch, scale) -> output [n, H, D], log-sum-exp [H, n] in float32``."""
    backward: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    """``(gradient, query, key, value, output, log-sum-exp, launch, scale) -> gradients of query, key and value``."""


def _options(launch: Launch, scale: float | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that PyTorch's two operators share, as torch.nn.attention.varlen passes them."""
    left, right = (-1, 0 if launch.causal else -1) if launch.window is None else (launch.window - 1, 0)
    # With one query a sequence, the operator would return its log-sum-exps in another shape: say two.
    lengths = launch.row_starts, launch.column_starts, max(launch.most_rows, 2), launch.most_columns
    causal = launch.causal and launch.window is None
    return (*lengths, 0.0, causal), {"scale": scale, "window_size_left": left, "window_size_right": right}


def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, launch: Launch, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    arguments, options = _options(launch, scale)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(query, key, value, *arguments, False, **options)
    return out, lse


def _backward(*states_launch_scale: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    *states, launch, scale = states_launch_scale
    arguments, options = _options(launch, scale)
    # The state of the random numbers of dropout, which is off.
    unused = torch.zeros(2, dtype=torch.uint64, device=states[0].device), torch.empty(0, device=states[0].device)
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    gradients = torch.ops.aten._flash_attention_backward(*states, *arguments, *unused, **options)
    return gradients


FLASH = Operators(_forward, _backward)


class Varlen(AttentionKernel):
    """Flash attention over sequences of different lengths, with ``operators`` other than PyTorch's in tests."""

    devices = frozenset({"cuda"})
    order = 10
    family = "flash"

    def __init__(self, operators: Operators = FLASH) -> None:
        self.operators = operators

    def refusal(self, layer: AttentionLayer) -> str | None:
        if layer.softcap is not None:
            return "does not support softcap"
        if self.operators is not FLASH:
            return None
        if layer.dtype not in (torch.bfloat16, torch.float16):
            return f"computes in bfloat16 and float16, not in {str(layer.dtype).removeprefix('torch.')}"
        if layer.head_size % 8 or layer.head_size > 256:
            return f"takes heads of a multiple of 8 numbers up to 256, not {layer.head_size}"
        return trial(self, layer)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, layer: AttentionLayer
    ) -> torch.Tensor:
        limits = layer.window, layer.chunk, query.device
        made = layout.once(("varlen", *limits), lambda: launches(layout, *limits))
        states = [state.squeeze(0).transpose(0, 1) for state in (query, key, value)]
        out: torch.Tensor = _VarlenAttention.apply(*states, made, self.operators, layer.scale)  # type: ignore[no-untyped-call]
        return out.transpose(0, 1).unsqueeze(0)

    def outline(self) -> AttentionKernel:
        return _Outlined(Operators(_empty, _empty_gradients))


class _Outlined(Varlen):
    """The merging of two launches, and what surrounds them."""

    devices = frozenset()

    def refusal(self, layer: AttentionLayer) -> str | None:
        return VARLEN.refusal(layer._replace(device="cpu"))


def _empty(query: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)


def _empty_gradients(
    _grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


VARLEN = Varlen()


def launches(layout: Layout, window: int | None, chunk: int | None, device: torch.device) -> list[Launch]:
    """Return the launches of a packed row: one or two, whatever the number of sequences."""
    longest = max(prompt + max(completions, default=0) for _, prompt, completions in layout.segments)
    if window is not None and longest > window:
        pairs = list(_windowed(layout, window))
        rows, columns = [rows for rows, _ in pairs], [columns for _, columns in pairs]
        return [_launch(rows, columns, device, all_rows=True, causal=True, window=window)]
    parts = blocks(layout.segments, None, chunk)
    runs = [[(part.q0, part.q1)] for part in parts if not part.merge]
    merged = [part for part in parts if part.merge]
    made = [_launch(runs, runs, device, all_rows=True, all_columns=True, causal=True)]
    if merged:
        rows = [[(part.q0, part.q1)] for part in merged]
        made.append(_launch(rows, [[(part.k0, part.k1)] for part in merged], device))
    return made


def _windowed(layout: Layout, window: int) -> Iterator[tuple[Ranges, Ranges]]:
    """Yield the ranges of queries and of keys of every sequence."""
    for start, prompt, completions in layout.segments:
        trunk = start + prompt
        ends = list(accumulate(completions or (0,), initial=trunk))[1:]
        yield [(start, ends[0])], [(start, ends[0])]
        for begin, end in pairwise(ends):
            yield [(begin, end)], [(max(start, trunk - window + 1), trunk), (begin, end)]


def _launch(
    rows: list[Ranges],
    columns: list[Ranges],
    device: torch.device,
    *,
    all_rows: bool = False,
    all_columns: bool = False,
    causal: bool = False,
    window: int | None = None,
) -> Launch:
    def index(ranges: list[Ranges]) -> torch.Tensor:
        return on_device(np.concatenate([np.arange(a, b) for one in ranges for a, b in one]), device)

    def starts(ranges: list[Ranges]) -> tuple[torch.Tensor, int]:
        sizes = [sum(b - a for a, b in one) for one in ranges]
        return on_device(np.cumsum([0, *sizes], dtype=np.int32), device), max(sizes)

    (row_starts, most_rows), (column_starts, most_columns) = starts(rows), starts(columns)
    indices = None if all_rows else index(rows), None if all_columns else index(columns)
    return Launch(*indices, row_starts, column_starts, most_rows, most_columns, causal, window)


def _taken(index: torch.Tensor | None, *states: torch.Tensor) -> list[torch.Tensor]:
    return list(states) if index is None else [state.index_select(0, index) for state in states]


class _VarlenAttention(torch.autograd.Function):
    """Attention of query ``[T, H, D]`` to key and value ``[T, K, D]``, merged over launches -> ``[T, H, D]``."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        launches: list[Launch],
        operators: Operators,
        scale: float | None,
    ) -> torch.Tensor:
        first, *others = launches
        out, lse = operators.forward(query, *_taken(first.columns, key, value), first, scale)
        for launch in others:
            rows = launch.rows
            assert rows is not None  # the first launch has all of them
            more, more_lse = operators.forward(
                query.index_select(0, rows), *_taken(launch.columns, key, value), launch, scale
            )
            old_lse = lse.index_select(1, rows)
            total = torch.logaddexp(old_lse, more_lse)
            share = (more_lse - total).exp().mT.unsqueeze(-1)  # [n, H, 1]
            merged = torch.lerp(out.index_select(0, rows).to(share.dtype), more.to(share.dtype), share)
            out.index_copy_(0, rows, merged.to(out.dtype))
            lse.index_copy_(1, rows, total)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.launches, ctx.operators, ctx.scale = launches, operators, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        grad = grad.contiguous()
        sums: list[torch.Tensor] = []
        for launch in ctx.launches:
            g, q, o = _taken(launch.rows, grad, query, out)
            k, v = _taken(launch.columns, key, value)
            total = lse if launch.rows is None else lse.index_select(1, launch.rows)
            found = ctx.operators.backward(g, q, k, v, o, total, launch, ctx.scale)
            if not sums:
                states = (query, launch.rows), (key, launch.columns), (value, launch.columns)
                sums = [
                    one if index is None else _summed(torch.zeros_like(state), index, one, lse.dtype)
                    for one, (state, index) in zip(found, states, strict=True)
                ]
                continue
            # The second launch has a query once: adding in its own type rounds once. A prompt's keys and values collect the
            # gradients of several completions: in float32.
            sums[0].index_add_(0, launch.rows, found[0])
            sums[1:] = [
                _summed(one, launch.columns, part, lse.dtype) for one, part in zip(sums[1:], found[1:], strict=True)
            ]
        return *(one.to(query.dtype) for one in sums), None, None, None


def _summed(to: torch.Tensor, index: torch.Tensor, parts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return to.to(dtype).index_add_(0, index, parts.to(dtype))
