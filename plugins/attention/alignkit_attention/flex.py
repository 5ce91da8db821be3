"""FlexAttention with a block mask, made once for a packed row and compiled for a few lengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from alignkit.contract import AttentionKernel, AttentionLayer, Layout, Segment
from alignkit.system.device import on_device
from torch.nn import functional

from alignkit_attention.blocks import blocks
from alignkit_attention.outline import Extra, Outline
from alignkit_attention.trial import trial
from alignkit_attention.visible import visible

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Tokens of a side of a block."""

SHORTEST = 512
"""Lengths are rounded up to a power of two from this one on, because every length is compiled anew."""

MOST_COMPILATIONS = 64
"""By default PyTorch stops compiling after 8, and computes the whole matrix of scores from then on."""


class Flex(AttentionKernel):
    """FlexAttention; ``compiler_backend`` replaces the compiler in tests, and None runs without one."""

    devices = frozenset({"cuda", "xpu"})
    order = 20
    family = "flex"

    def __init__(self, compiler_backend: Callable[..., Any] | str | None = "inductor") -> None:
        self.compilations = 0
        """Number of compiled variants: of lengths, dtypes, windows, with and without gradient."""
        self._backend = compiler_backend
        self._seen: set[Any] = set()

    def refusal(self, layer: AttentionLayer) -> str | None:
        return trial(self, layer)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, layer: AttentionLayer
    ) -> torch.Tensor:
        import torch._dynamo.config as compiler

        tokens = query.shape[2]
        length = rounded(tokens)
        made = ("flex", length, layer.window, layer.chunk, query.device)
        mask = layout.once(made, lambda: block_mask(layout, length, layer.window, layer.chunk, query.device))
        states = [functional.pad(state, (0, 0, 0, length - tokens)) for state in (query, key, value)]
        variant = length, layer, torch.is_grad_enabled(), query.requires_grad
        limits = compiler.patch(recompile_limit=MOST_COMPILATIONS, fail_on_recompile_limit_hit=True)
        with nullcontext() if variant in self._seen else limits:
            out: torch.Tensor = self._run(
                *states,
                score_mod=None if layer.softcap is None else _capped(layer.softcap),
                block_mask=mask,
                scale=layer.scale,
                enable_gqa=layer.heads != layer.key_heads,
            )
        self._seen.add(variant)
        return out[:, :, :tokens]

    def outline(self) -> AttentionKernel:
        return Outline(self, lambda _, tokens, __: Extra(padding=rounded(tokens) - tokens))

    @cached_property
    def _run(self) -> Callable[..., Any]:
        from torch.nn.attention.flex_attention import flex_attention

        if self._backend is None:
            return flex_attention
        return torch.compile(flex_attention, backend=self._compile, dynamic=False, fullgraph=True)

    def _compile(self, graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.registry import lookup_backend

        self.compilations += 1
        backend: Any = lookup_backend(self._backend) if isinstance(self._backend, str) else self._backend
        return backend(graph, inputs)


FLEX = Flex()


def rounded(tokens: int) -> int:
    """Return the length to which a row is padded.

    >>> [rounded(n) for n in (1, 512, 513, 5000)]
    [512, 512, 1024, 8192]
    """
    return max(SHORTEST, 1 << (tokens - 1).bit_length())


@lru_cache
def _capped(softcap: float) -> Callable[..., torch.Tensor]:
    def cap(
        score: torch.Tensor, _b: torch.Tensor, _h: torch.Tensor, _q: torch.Tensor, _k: torch.Tensor
    ) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def block_mask(layout: Layout, length: int, window: int | None, chunk: int | None, device: torch.device) -> BlockMask:
    """Return the mask of a row padded to ``length``, a multiple of :data:`BLOCK`, made without its dense form."""
    from torch.nn.attention.flex_attention import BlockMask

    partial, full = block_map(layout.segments, length, window, chunk)

    def ordered(grid: npt.NDArray[np.bool_]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the number of blocks of every row of the grid, and their columns first."""
        columns = np.argsort(~grid, axis=1, kind="stable").astype(np.int32)
        return on_device(grid.sum(1, dtype=np.int32)[None, None], device), on_device(columns[None, None], device)

    sees = visible(layout, device, window, chunk, length)
    return BlockMask.from_kv_blocks(
        *ordered(partial), *ordered(full), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(length, length)
    )


def block_map(
    segments: Sequence[Segment], length: int, window: int | None, chunk: int | None, size: int = BLOCK
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return the blocks of which some pairs of query and key are visible, and those of which all are.

    Both are grids of ``[length / size] * 2``, and no block is in both.
    """
    count = length // size
    seen, full = np.zeros((count, count), dtype=bool), np.zeros((count, count), dtype=bool)
    for part in blocks(segments, window, chunk, rows=length):
        i, j = np.arange(part.q0 // size, -(-part.q1 // size)), np.arange(part.k0 // size, -(-part.k1 // size))
        q0, q1 = np.maximum(i * size, part.q0)[:, None], np.minimum((i + 1) * size, part.q1)[:, None]
        k0, k1 = np.maximum(j * size, part.k0), np.minimum((j + 1) * size, part.k1)
        some = every = np.ones((len(i), len(j)), dtype=bool)
        if part.causal or part.offset is not None:
            # Distances in positions between queries and keys of a block: from the lowest to the highest.
            shift = part.k0 - part.q0 + (part.offset or 0)
            lowest, highest = q0 - (k1 - 1) + shift, (q1 - 1) - k0 + shift
            most = math.inf if part.causal or window is None else window
            some, every = (highest >= 0) & (lowest < most), (lowest >= 0) & (highest < most)
        whole = (q1 - q0 == size) & (k1 - k0 == size)
        where = slice(i[0], i[-1] + 1), slice(j[0], j[-1] + 1)
        seen[where] |= some
        full[where] |= every & whole
    start, prompt, completions = segments[-1]
    padding = np.arange((start + prompt + sum(completions)) // size, count)  # every token attends to itself
    seen[padding, padding] = True
    return seen & ~full, full
