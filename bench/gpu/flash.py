"""Flash attention for transformers' models without the package flash-attn: PyTorch's own operators, with autograd.

Sequences of different lengths are taken as transformers hands them to flash attention: their starts (padding-free), or a
padding mask ``[B, S]``. With fewer queries than keys, the last query attends up to the last key. On a CPU, each sequence is
computed by scaled dot-product attention, so that the same code runs there.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from alignkit_attention.varlen import FLASH, Launch, _VarlenAttention

NAME = "torch_varlen"


def register() -> None:
    """Make the attention known to transformers as :data:`NAME`."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, flash_attention_mask)


def attend(
    _module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention ``[B, S, H, D]`` of query ``[B, H, S, D]``, key and value ``[B, K, T, D]``."""
    batch, heads, rows, size = query.shape
    columns = key.shape[2]
    dtype = query.dtype
    if dtype == torch.float32 and torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
    query, key, value = (x.transpose(1, 2).reshape(-1, x.shape[1], size).to(dtype) for x in (query, key, value))
    if cu_seq_lens_q is not None:
        starts = cu_seq_lens_q.to(query.device)
        out = _sequences(
            query, key, value, starts, starts, int(max_length_q or rows), int(max_length_q or rows), scaling
        )
    elif attention_mask is None:
        edges = torch.arange(batch + 1, dtype=torch.int32, device=query.device)
        out = _sequences(query, key, value, edges * rows, edges * columns, rows, columns, scaling)
    else:
        mask = attention_mask.bool()
        asked = mask[:, -rows:]
        mine, theirs = asked.flatten().nonzero().flatten(), mask.flatten().nonzero().flatten()
        found = _sequences(
            query[mine], key[theirs], value[theirs], _starts(asked), _starts(mask), rows, columns, scaling
        )
        out = found.new_zeros(batch * rows, heads, size).index_copy(0, mine, found)
    return out.view(batch, rows, heads, size), None


def _starts(mask: torch.Tensor) -> torch.Tensor:
    lengths = mask.sum(1, dtype=torch.int32)
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def _sequences(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_starts: torch.Tensor,
    column_starts: torch.Tensor,
    most_rows: int,
    most_columns: int,
    scale: float | None,
) -> torch.Tensor:
    """Return causal attention ``[n, H, D]`` over sequences laid end to end, query ``[n, H, D]``, key ``[m, K, D]``."""
    if query.device.type == "cuda":
        launch = Launch(None, None, row_starts, column_starts, most_rows, most_columns, causal=True)
        out: torch.Tensor = _VarlenAttention.apply(query, key, value, [launch], FLASH, scale)  # type: ignore[no-untyped-call]
        return out
    found = []
    for (a, b), (c, d) in zip(pairwise(row_starts.tolist()), pairwise(column_starts.tolist()), strict=True):
        parts = [x.transpose(0, 1)[None] for x in (query[a:b], key[c:d], value[c:d])]
        seen = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
        one = torch.nn.functional.scaled_dot_product_attention(
            parts[0], parts[1], parts[2], attn_mask=seen, scale=scale, enable_gqa=True
        )
        found.append(one[0].transpose(0, 1))
    return torch.cat(found)
