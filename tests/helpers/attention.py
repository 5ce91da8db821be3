"""Packed rows, attention by separate sequences to compare kernels with, and flash attention's operators in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from alignkit.contract import AttentionKernel, AttentionLayer, Layout, Segment
from alignkit_attention.cpu import BLOCKS
from alignkit_attention.flex import FLEX, Flex
from alignkit_attention.sdpa import PLAIN_SDPA
from alignkit_attention.varlen import VARLEN, Launch, Operators, Varlen
from hypothesis import strategies as st

LENGTHS = st.integers(1, 9)
TREES = st.lists(st.tuples(LENGTHS, st.lists(LENGTHS, max_size=3)), min_size=1, max_size=4)
LIMITS = st.sampled_from(["none", "window", "chunk"]).flatmap(
    lambda kind: st.integers(1, 20).map(lambda size: {} if kind == "none" else {kind: size})
)
HEADS = st.sampled_from([(4, 4), (4, 2), (4, 1)])


def layout_of(trees: Any) -> Layout:
    """Return the packed row of prompts and completions, given by their numbers of tokens."""
    sizes = [prompt + sum(completions) for prompt, completions in trees]
    starts = accumulate(sizes, initial=0)
    return Layout(tuple(Segment(start, p, tuple(c)) for start, (p, c) in zip(starts, trees, strict=False)))


def tokens_of(layout: Layout) -> int:
    start, prompt, completions = layout.segments[-1]
    return start + prompt + sum(completions)


def layer_of(heads: tuple[int, int], *, size: int = 8, device: str = "cpu", dtype: Any = torch.float64, **options: Any):
    return AttentionLayer(device, dtype, *heads, size, **options)


def states_of(layout: Layout, layer: AttentionLayer, seed: int = 0) -> list[torch.Tensor]:
    """Return query, key and value, with the strides that models give them."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [
        (1, tokens_of(layout), heads, layer.head_size) for heads in (layer.heads, layer.key_heads, layer.key_heads)
    ]
    made = [torch.randn(shape, generator=draw, dtype=torch.float64).to(layer.device, layer.dtype) for shape in shapes]
    return [state.transpose(1, 2).requires_grad_() for state in made]


def separate(query: Any, key: Any, value: Any, layout: Layout, layer: AttentionLayer) -> torch.Tensor:
    """Return attention by one calculation for every sequence of a prompt and a completion."""
    out = torch.zeros_like(query)
    groups = layer.heads // layer.key_heads
    for start, prompt, completions in layout.segments:
        ends = list(accumulate((prompt, *completions), initial=start))[1:]
        prompts = list(range(start, ends[0]))
        for own in [list(range(*pair)) for pair in pairwise(ends)] or [[]]:
            index = torch.tensor([*prompts, *own], device=query.device)
            q, k, v = query[:, :, index], key[:, :, index], value[:, :, index]
            scores = q @ k.repeat_interleave(groups, 1).mT * (layer.scale or layer.head_size**-0.5)
            scores = layer.softcap * torch.tanh(scores / layer.softcap) if layer.softcap else scores
            i = torch.arange(len(index), device=query.device)
            seen = i[None] <= i[:, None]
            seen &= layer.window is None or (i[:, None] - i[None] < layer.window)  # type: ignore[operator]
            seen &= layer.chunk is None or (i[:, None] // layer.chunk == i[None] // layer.chunk)  # type: ignore[operator]
            part = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v.repeat_interleave(groups, 1)
            first = not own or own[0] == ends[0]
            out = out.index_copy(2, index if first else index[prompt:], part if first else part[:, :, prompt:])
    return out


def tree_mask(layout: Layout, window: int | None = None, chunk: int | None = None) -> torch.Tensor:
    """Return the mask ``[T, T]``, built token by token."""
    where = []
    for group, segment in enumerate(layout.segments):
        where += [(group, 0, i) for i in range(segment.prompt)]
        for k, length in enumerate(segment.completions, 1):
            where += [(group, k, segment.prompt + i) for i in range(length)]

    def sees(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
        near = (window is None or a[2] - b[2] < window) and (chunk is None or a[2] // chunk == b[2] // chunk)
        return a[0] == b[0] and b[1] in (0, a[1]) and b[2] <= a[2] and near

    return torch.tensor([[sees(a, b) for b in where] for a in where])


def gradients_of(attend: Callable[..., torch.Tensor], states: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the output and the gradients of query, key and value for a loss that weighs every number differently."""
    out = attend(*states)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), states)]


def _sequences(launch: Launch) -> Iterator[tuple[slice, slice]]:
    rows, columns = launch.row_starts.tolist(), launch.column_starts.tolist()
    for (a, b), (c, d) in zip(pairwise(rows), pairwise(columns), strict=True):
        yield slice(a, b), slice(c, d)


def _scores(query: torch.Tensor, key: torch.Tensor, launch: Launch, scale: float | None) -> torch.Tensor:
    """Return the scores of one sequence ``[H, n, m]``; causal from the last query and key backwards, as in flash attention."""
    exact = torch.promote_types(query.dtype, torch.float32)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = torch.einsum("nhd,mhd->hnm", query.to(exact), key.to(exact)) * (scale or query.shape[2] ** -0.5)
    n, m = scores.shape[1:]
    distance = torch.arange(n)[:, None] + m - n - torch.arange(m)
    hidden = distance < 0 if launch.causal else torch.zeros(n, m, dtype=torch.bool)
    hidden |= launch.window is not None and distance >= launch.window  # type: ignore[operator]
    return scores.masked_fill(hidden, float("-inf"))


def _forward(
    query: Any, key: Any, value: Any, launch: Launch, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty_like(query)
    lse = torch.empty(query.shape[1], len(query), dtype=torch.promote_types(query.dtype, torch.float32))
    groups = query.shape[1] // key.shape[1]
    for rows, columns in _sequences(launch):
        scores = _scores(query[rows], key[columns], launch, scale)
        lse[:, rows] = scores.logsumexp(-1)
        values = value[columns].repeat_interleave(groups, 1).to(scores.dtype)
        out[rows] = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), values).to(out.dtype)
    return out, lse


def _backward(grad, query, key, value, out, lse, launch, scale):
    """Return flash attention's gradients, from the output and log-sum-exps alone (arXiv:2205.14135, appendix B.2)."""
    exact, groups = lse.dtype, query.shape[1] // key.shape[1]
    factor = scale or query.shape[2] ** -0.5
    d_query, d_key, d_value = (torch.zeros_like(state, dtype=exact) for state in (query, key, value))
    for rows, columns in _sequences(launch):
        p = (_scores(query[rows], key[columns], launch, scale) - lse[:, rows, None]).exp()
        g, o, q = (state[rows].to(exact) for state in (grad, out, query))
        k, v = (state[columns].repeat_interleave(groups, 1).to(exact) for state in (key, value))
        d_p = torch.einsum("nhd,mhd->hnm", g, v)
        d_s = p * (d_p - (g * o).sum(-1).T[:, :, None]) * factor
        d_query[rows] = torch.einsum("hnm,mhd->nhd", d_s, k)
        d_k, d_v = torch.einsum("hnm,nhd->mhd", d_s, q), torch.einsum("hnm,nhd->mhd", p, g)
        d_key[columns] += d_k.unflatten(1, (-1, groups)).sum(2)
        d_value[columns] += d_v.unflatten(1, (-1, groups)).sum(2)
    return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype)


REFERENCE = Operators(_forward, _backward)
"""PyTorch's flash attention runs on CUDA alone: the same in plain PyTorch, a sequence at a time."""


class VarlenAnywhere(Varlen):
    devices = frozenset()


class FlexAnywhere(Flex):
    devices = frozenset()


class Case(NamedTuple):
    """A kernel in a dtype, and the largest error of an output or gradient, relative to its largest number."""

    name: str
    kernel: AttentionKernel
    dtype: torch.dtype
    bound: float


CASES: dict[str, list[Case]] = {
    "cpu": [
        Case("blocks", BLOCKS, torch.float64, 1e-10),
        Case("varlen", VarlenAnywhere(REFERENCE), torch.float64, 1e-10),
        Case("sdpa", PLAIN_SDPA, torch.float64, 1e-10),
    ],
    "cuda": [
        Case("varlen", VARLEN, torch.bfloat16, 0.03),
        Case("flex", FLEX, torch.float32, 1e-4),
        Case("flex", FLEX, torch.bfloat16, 0.03),
        Case("sdpa", PLAIN_SDPA, torch.float32, 1e-4),
        Case("sdpa", PLAIN_SDPA, torch.bfloat16, 0.03),
    ],
}


def assert_agrees(case: Case, layout: Layout, layer: AttentionLayer) -> None:
    """Compare output and gradients with separate sequences in float64."""
    states = states_of(layout, layer)
    exact = [state.detach().double().requires_grad_() for state in states]
    wanted = gradients_of(lambda q, k, v: separate(q, k, v, layout, layer), exact)
    found = gradients_of(lambda q, k, v: case.kernel.attend(q, k, v, layout, layer), states)
    for what, got, want in zip(("output", "query", "key", "value"), found, wanted, strict=True):
        error = float((got.double() - want).abs().max() / want.abs().max().clamp(min=1e-3))
        assert error <= case.bound, (case.name, what, error, layout.segments, layer)
