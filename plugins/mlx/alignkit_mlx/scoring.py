"""Scores of tokens by an mlx-lm model: the layout of a micro-batch, prompts that completions share, and the head in chunks.

Letters in shapes: ``G`` prompts of ``P`` tokens, ``S`` rows of ``C`` tokens, ``N`` scored completion tokens, ``M`` scored prompt
tokens, ``H`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from alignkit.contract import Example
from alignkit.scoring.plan import make_plan

KEPT, CHUNK, LEAST = 512 << 20, 128 << 20, 128
"""Bytes of logits that are kept for the backward pass; where there are more, they are computed in chunks of so many bytes, or of
the least number of tokens, and again in the backward pass."""


class Layout(NamedTuple):
    """The input of a forward pass and the places of the scores."""

    rows: mx.array  # [S, C] whole sequences, or completions
    prompts: mx.array | None  # [G, P] prompts that the completions share
    owner: mx.array  # [S] prompt of each row
    lengths: mx.array  # [S] tokens of it
    source: mx.array  # [N + M] places in [G * P] and [S * C] of the hidden states that predict the tokens
    targets: mx.array  # [N + M]
    scored: int  # N
    ends: mx.array  # [S] last token of each whole row that is not padding's


def make_layout(examples: Sequence[Example], *, prompt: bool, share: bool, pad: int | None = None) -> Layout:
    """Lay out rows padded on the right; prompts are shared where that saves tokens. ``pad``: a token that never ends a row."""
    plan = make_plan(examples, prompt=prompt, backend="padded")
    segments, flat = plan.layout.segments, plan.input_ids
    tree = make_plan(examples, prompt=prompt, backend="rows") if share else plan
    trees = tree.layout.segments
    widest, longest = max(s.prompt for s in trees), max(max(s.completions) for s in trees)
    source, targets = plan.source.numpy(), plan.targets.numpy()
    if share and len(trees) * widest + len(segments) * longest < flat.numel():
        ids, place = tree.input_ids.flatten().numpy(), np.zeros(tree.input_ids.numel(), np.int64)
        prompts, rows = np.zeros((len(trees), widest), np.int32), np.zeros((len(segments), longest), np.int32)
        row = 0
        for g, (start, width, completions) in enumerate((s.start, s.prompt, s.completions) for s in trees):
            end = start + width
            prompts[g, :width], place[start:end] = ids[start:end], g * widest + np.arange(width)
            for length in completions:
                rows[row, :length] = ids[end : end + length]
                place[end : end + length] = prompts.size + row * longest + np.arange(length)
                row, end = row + 1, end + length
        source = place[np.concatenate([tree.source, tree.prompt_source])]
        targets = np.concatenate([tree.targets, tree.prompt_targets])
        given: mx.array | None = mx.array(prompts)
    else:
        given, rows = None, flat.numpy().astype(np.int32)
        source = np.concatenate([plan.source, plan.prompt_source])
        targets = np.concatenate([plan.targets, plan.prompt_targets])
    sizes = [len(s.completions) for s in trees]
    owner, lengths = np.repeat(np.arange(len(trees)), sizes), np.repeat([s.prompt for s in trees], sizes)
    used = [sum((s.prompt, *s.completions)) for s in segments]
    whole = plan.input_ids.numpy()
    ends = [max((i for i in range(n) if whole[row, i] != pad), default=n - 1) for row, n in enumerate(used)]
    return Layout(
        mx.array(rows),
        given,
        mx.array(owner.astype(np.int32)),
        mx.array(lengths.astype(np.int32)),
        mx.array(source.astype(np.int32)),
        mx.array(targets.astype(np.int32)),
        len(plan.targets),
        mx.array(np.array(ends, np.int32)),
    )


class Shared:
    """A layer's keys and values of prompts, in place of mlx-lm's cache: the first pass keeps them, the second reads them."""

    def __init__(self, layout: Layout) -> None:
        assert layout.prompts is not None
        self.layout, self.width = layout, layout.prompts.shape[1]
        self.keys: Any = None
        self.values: Any = None
        self.second = False
        self.offset: Any = 0

    def begin_second(self) -> None:
        self.second, self.offset = True, self.layout.lengths

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if not self.second:
            self.keys, self.values = keys, values
            return keys, values
        owner = self.layout.owner
        return mx.concatenate([self.keys[owner], keys], 2), mx.concatenate([self.values[owner], values], 2)

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None, **_: Any) -> Any:
        """Return a mask of the kind that mlx-lm's caches return: True where a query (row) sees a key (column)."""
        if not self.second:
            return _causal(N, window_size) if return_array or window_size else "causal"
        lengths = self.layout.lengths[:, None, None]  # [S, 1, 1]
        query, key = mx.arange(N)[:, None], mx.arange(self.width)
        seen = mx.broadcast_to(key < lengths, (len(self.layout.lengths), N, self.width))
        if window_size:
            seen = seen & (lengths + query - key < window_size)
        own = mx.broadcast_to(_causal(N, window_size), (len(self.layout.lengths), N, N))
        return mx.concatenate([seen, own], -1)[:, None]


def batch_caches(model: Any, padding: list[int]) -> list[Any]:
    """Return empty caches of generation for rows padded on the left; raises ``TypeError`` for a model with another state."""
    from mlx_lm.models.cache import BatchKVCache, BatchRotatingKVCache, KVCache, RotatingKVCache, make_prompt_cache

    def batched(cache: Any) -> Any:
        if type(cache) is KVCache:
            return BatchKVCache(padding)
        if type(cache) is RotatingKVCache:
            return BatchRotatingKVCache(cache.max_size, padding)
        raise TypeError(f"{type(cache).__name__} has no form for several rows here")

    return [batched(cache) for cache in make_prompt_cache(model)]


def _causal(size: int, window: int | None) -> mx.array:
    query, key = mx.arange(size)[:, None], mx.arange(size)
    return (key <= query) & (query - key < window) if window else key <= query


class Instead:
    """An object with some attributes of its own; a call returns ``result``."""

    def __init__(self, of: Any, **own: Any) -> None:
        self.__dict__.update(own, _of=of)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.result


def logits_of(model: Any, hidden: mx.array) -> mx.array:
    """Return the logits ``[n, V]`` of hidden states ``[n, H]`` by the model's own code, with them in place of its trunk."""
    given = Instead(model, model=Instead(model.model, result=hidden[None]))
    logits: mx.array = type(model).__call__(given, mx.zeros((1, len(hidden)), mx.int32))
    return logits[0]


def token_scores(logits: mx.array, targets: mx.array, temperature: float, entropy: bool) -> tuple[mx.array, mx.array]:
    """Return log-probabilities of ``targets`` and entropies (zeros unless wanted), float32 ``[n]`` each."""
    logits = logits.astype(mx.float32)
    logits = logits if temperature == 1.0 else logits / temperature
    whole = mx.logsumexp(logits, axis=-1)
    logps = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0] - whole
    if not entropy:
        return logps, mx.zeros_like(logps)
    return logps, whole - (mx.exp(logits - whole[:, None]) * logits).sum(-1)
