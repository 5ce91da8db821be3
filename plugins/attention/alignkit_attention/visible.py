"""Which tokens of a packed row attend to which, as one function for masks of any shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from alignkit.contract import Layout, Segment
from alignkit.system.device import on_device

Visible = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""``visible(batch, head, query, key)``: whether query index attends to key index; indices may be tensors of any shape."""


def visible(layout: Layout, device: torch.device, window: int | None, chunk: int | None, length: int = 0) -> Visible:
    """Return the mask function of a packed row, which may be padded to ``length`` tokens that attend to themselves."""
    tree, branch, position = layout.once(
        ("visible", device, length), lambda: [on_device(part, device) for part in _places(layout.segments, length)]
    )

    def sees(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = (
            (key <= query) & (tree[query] == tree[key]) & ((branch[key] == 0) | (branch[key] == branch[query]))
        )
        if window is not None:
            seen = seen & (position[query] - position[key] < window)
        if chunk is not None:
            seen = seen & (position[query] // chunk == position[key] // chunk)
        return seen

    return sees


def _places(segments: Sequence[Segment], length: int) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Return tree, branch (0 the prompt, k the k-th completion) and position of every token, ``[3, T]``."""
    tokens = segments[-1].start + segments[-1].prompt + sum(segments[-1].completions)
    places = np.zeros((3, max(tokens, length)), dtype=np.int32)
    places[0, tokens:] = -1 - np.arange(places.shape[1] - tokens)  # every token of padding is a tree of its own
    for number, (start, prompt, completions) in enumerate(segments):
        ends = list(accumulate((prompt, *completions), initial=start))
        places[0, start : ends[-1]] = number
        for k, (begin, end) in enumerate(pairwise(ends)):
            places[1, begin:end] = k
            places[2, begin:end] = np.arange(end - begin) + (prompt if k else 0)
    return places
