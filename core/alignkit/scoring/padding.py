"""Token ids of unequal lengths as one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from alignkit.system.device import on_device


def pad_rows(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids and the attention mask (1 token, 0 padding) of rows, ``[B, T]`` each.

    Rows are padded on the right, or with ``left`` on the left, as generation needs it.
    """
    side = "left" if left else "right"
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    padded = pad_sequence(ids, batch_first=True, padding_value=pad_id, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side=side)
    return on_device(padded, device), on_device(mask, device)
