"""4-D attention masks for rows whose completions share a prompt.

Letters in shapes: ``B`` rows, ``L`` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from alignkit.scoring.plan import Plan

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
"""Layer types as transformers names them."""


def layer_types(config: Any) -> set[str]:
    """Return the attention types of a model's layers; a model with one type often does not declare it."""
    named = getattr(config, "layer_types", None)
    if named:
        return set(named)
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return {SLIDING}
    return {CHUNKED} if getattr(config, "attention_chunk_size", None) else {FULL}


def row_masks(plan: Plan, config: Any, *, additive: bool, dtype: torch.dtype) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return the mask ``[B, 1, L, L]``, or one per layer type if the model has several.

    A token attends to its prompt and to earlier tokens of its own completion. Sliding windows and attention chunks are
    measured in positions, which differ from columns where a prompt is shared. Eager attention silently misreads boolean
    masks and needs ``additive`` ones (0, or the lowest number of ``dtype``); SDPA takes either.
    """
    query, key = plan.branch[:, None, :, None], plan.branch[:, None, None, :]
    # Padding attends to itself: no row is empty.
    sees = ((key == 0) | (key == query)).tril()
    masks = {kind: sees & _reach(kind, config, plan.position_ids) for kind in sorted(layer_types(config))}
    if additive:
        zeros, lowest = torch.zeros(sees.shape, dtype=dtype, device=sees.device), torch.finfo(dtype).min
        masks = {kind: zeros.masked_fill(~mask, lowest) for kind, mask in masks.items()}
    return masks if len(masks) > 1 else masks.popitem()[1]


def _reach(kind: str, config: Any, positions: torch.Tensor) -> torch.Tensor:
    """Return where attention of this kind reaches from the position of a query to that of a key."""
    query, key = positions[:, None, :, None], positions[:, None, None, :]
    if kind == FULL:
        return torch.ones((), dtype=torch.bool, device=positions.device)
    if kind == SLIDING:
        return query - key < int(config.sliding_window)
    if kind == CHUNKED:
        size = int(config.attention_chunk_size)
        return torch.div(query, size, rounding_mode="floor") == torch.div(key, size, rounding_mode="floor")
    raise NotImplementedError(f"layers of type {kind} take no attention mask")


@contextmanager
def unread_masks(padded: bool) -> Iterator[None]:
    """Tell transformers whether a batch is ``padded``: it would read it from the device to leave out masks without effect."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as FUNCTIONS
    from transformers.masking_utils import sdpa_mask

    def build(*args: Any, attention_mask: Any = None, **options: Any) -> Any:
        needed = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False} if padded else {}
        return sdpa_mask(*args, attention_mask=attention_mask if padded else None, **options | needed)

    names = [name for name, function in FUNCTIONS.items() if function is sdpa_mask]
    FUNCTIONS.update(dict.fromkeys(names, build))
    try:
        yield
    finally:
        for name in names:
            del FUNCTIONS[name]
