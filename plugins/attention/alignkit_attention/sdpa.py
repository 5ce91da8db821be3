"""Attention by completion with PyTorch's scaled dot-product attention: any device, gradients by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from alignkit.contract import AttentionKernel, AttentionLayer, Layout, Segment
from torch.nn import functional

from alignkit_attention.outline import Extra, Outline
from alignkit_attention.trial import trial
from alignkit_attention.visible import visible


class SDPA(AttentionKernel):
    """One call for a prompt with its first completion, and one for each other completion with a copy of its prompt's states.

    Calls that no window or chunk cuts have a causal mask, which flash kernels know; the others a dense boolean one.
    """

    order = 90
    family = "sdpa"

    def refusal(self, layer: AttentionLayer) -> str | None:
        return "does not support softcap" if layer.softcap is not None else trial(self, layer)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, layer: AttentionLayer
    ) -> torch.Tensor:
        parts = layout.once(("sdpa", layer.window), lambda: _parts(layout.segments, layer.window))
        outputs = []
        for part in parts:
            q, k, v = query[:, :, part.begin : part.end], part.keys(key), part.keys(value)
            mask, causal = _mask(part, q, layout, layer)
            outputs.append(
                functional.scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=mask,
                    is_causal=causal,
                    scale=layer.scale,
                    enable_gqa=layer.heads != layer.key_heads,
                )
            )
        return torch.cat(outputs, 2)

    def outline(self) -> AttentionKernel:
        return Outline(self, _extra)


PLAIN_SDPA = SDPA()


class _Part(NamedTuple):
    """Queries ``[begin, end)`` attend to the prompt's tokens ``[first, trunk)`` and to one another."""

    begin: int
    end: int
    first: int
    trunk: int
    length: int
    """Position of the last query, plus one."""

    def keys(self, states: torch.Tensor) -> torch.Tensor:
        own = states[:, :, self.begin : self.end]
        return own if self.first == self.trunk else torch.cat([states[:, :, self.first : self.trunk], own], 2)


def _extra(layout: Layout, tokens: int, layer: AttentionLayer) -> Extra:
    """Count the copies of prompts' states, the outputs of the calls before they are joined, and the masks as numbers.

    The gradient of a slice is as large as what it was cut from, and is added to that of the slice before.
    """
    parts = _parts(layout.segments, layer.window)
    columns = [part.end - part.begin + part.trunk - part.first for part in parts]
    copied = sum(n for part, n in zip(parts, columns, strict=True) if part.first < part.trunk)
    cells = sum((part.end - part.begin) * n for part, n in zip(parts, columns, strict=True) if _is_cut(part, layer))
    kept = (2 * layer.key_heads * copied + layer.heads * tokens) * layer.head_size + cells
    return Extra(kept=kept, passing=2 * layer.heads * layer.head_size * tokens * layer.dtype.itemsize)


def _parts(segments: Sequence[Segment], window: int | None) -> list[_Part]:
    parts = []
    for start, prompt, completions in segments:
        trunk = start + prompt
        ends = list(accumulate(completions or (0,), initial=trunk))[1:]
        parts.append(_Part(start, ends[0], start, start, ends[0] - start))
        first = start if window is None else max(start, trunk - window + 1)
        parts += [_Part(begin, end, first, trunk, prompt + end - begin) for begin, end in pairwise(ends)]
    return parts


def _is_cut(part: _Part, layer: AttentionLayer) -> bool:
    """Whether the window or chunk hides some of what the queries of a part would see."""
    return any(limit is not None and part.length > limit for limit in (layer.window, layer.chunk))


def _mask(part: _Part, query: torch.Tensor, layout: Layout, layer: AttentionLayer) -> tuple[Any, bool]:
    """Return the mask of a call and whether it is causal with as many keys as queries."""
    if not _is_cut(part, layer):
        if part.first == part.trunk:
            return None, True
        from torch.nn.attention.bias import causal_lower_right  # imports the compiler

        own = part.end - part.begin
        return causal_lower_right(own, own + part.trunk - part.first), False

    def dense() -> torch.Tensor:
        rows = torch.arange(part.begin, part.end, device=query.device)
        columns = torch.cat([torch.arange(part.first, part.trunk, device=query.device), rows])
        sees = visible(layout, query.device, layer.window, layer.chunk)
        return sees(rows, rows, rows[:, None], columns[None])

    return layout.once(("sdpa", part, layer.window, layer.chunk, query.device), dense), False
