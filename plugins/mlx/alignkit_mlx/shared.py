"""Prompts that completions share: their keys and values, in place of mlx-lm's caches.

Letters in shapes: ``G`` prompts of ``P`` tokens, ``S`` completions of ``C`` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx


class Shared:
    """A layer's keys and values of prompts while the prompts are computed."""

    offset: Any = 0

    def __init__(self) -> None:
        self.kept: list[mx.array] = []
        """Keys and values, ``[G, heads, P, size]`` each."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.kept = [keys, values]
        return keys, values

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None, **_: Any) -> Any:
        """Return a mask of the kind that mlx-lm's caches return: True where a query (row) sees a key (column)."""
        return _causal(N, window_size) if return_array or window_size else "causal"


class Continued(Shared):
    """The same while the completions are computed, which read them."""

    def __init__(self, prompts: Shared, owner: mx.array, lengths: mx.array) -> None:
        self.kept, self.owner, self.offset = prompts.kept, owner, lengths

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        before = [one[self.owner] for one in self.kept]
        return mx.concatenate([before[0], keys], 2), mx.concatenate([before[1], values], 2)

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None, **_: Any) -> Any:
        lengths, width = self.offset[:, None, None], self.kept[0].shape[2]  # [S, 1, 1], P
        query, key = mx.arange(N)[:, None], mx.arange(width)
        seen = mx.broadcast_to(key < lengths, (len(lengths), N, width))
        if window_size:
            seen = seen & (lengths + query - key < window_size)
        own = mx.broadcast_to(_causal(N, window_size), (len(lengths), N, N))
        return mx.concatenate([seen, own], -1)[:, None]


def _causal(size: int, window: int | None) -> mx.array:
    query, key = mx.arange(size)[:, None], mx.arange(size)
    return (key <= query) & (query - key < window) if window else key <= query


def batch_caches(model: Any, padding: Sequence[int]) -> list[Any]:
    """Return empty caches of generation for rows padded on the left; raises ``TypeError`` for a model with another state."""
    from mlx_lm.models.cache import BatchKVCache, BatchRotatingKVCache, KVCache, RotatingKVCache, make_prompt_cache

    def batched(cache: Any) -> Any:
        if type(cache) is KVCache:
            return BatchKVCache(padding)
        if type(cache) is RotatingKVCache:
            return BatchRotatingKVCache(cache.max_size, padding)
        raise TypeError(f"{type(cache).__name__} has no form for several rows here")

    return [batched(cache) for cache in make_prompt_cache(model)]
