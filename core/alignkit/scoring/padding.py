"""Token ids of unequal lengths as one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def pad_rows(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids and the attention mask (1 token, 0 padding) of padded rows, ``[B, T]`` each.

    Args:
        rows: token ids of each row.
        pad_id: id that fills the shorter rows.
        device: device of both tensors.
        left: pad on the left, as generation needs it; otherwise on the right.
    """
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        gap = width - len(row)
        before, after = (gap, 0) if left else (0, gap)
        ids.append([pad_id] * before + [*row] + [pad_id] * after)
        mask.append([0] * before + [1] * len(row) + [0] * after)
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
