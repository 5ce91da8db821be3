"""The benchmark's flash attention for transformers' models, against each sequence by itself."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.gpu import flash


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=4), st.booleans())
def test_flash_attention_is_that_of_each_sequence(lengths: list[tuple[int, int]], left: bool) -> None:
    """Queries are the last tokens of every sequence; padding is anywhere outside."""
    draw = torch.Generator().manual_seed(0)
    rows, before = max(n for n, _ in lengths), max(m for _, m in lengths)
    columns = rows + before
    query = torch.randn(len(lengths), 4, rows, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(len(lengths), 2, columns, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(len(lengths), columns, dtype=torch.bool)
    for i, (n, m) in enumerate(lengths):
        mask[i, before - m : before] = True
        mask[i, columns - n :] = True if left else mask[i, columns - n :]
        mask[i, before : before + n] = mask[i, before : before + n] if left else True
    out, _ = flash.attend(None, query, key, value, mask)
    out.sum().backward()
    assert query.grad is not None
    for i, (n, m) in enumerate(lengths):
        mine = slice(rows - n, rows) if left else slice(0, n)
        keys = mask[i].nonzero().flatten()
        q, k, v = query[i, :, mine], key[i][:, keys].repeat_interleave(2, 0), value[i][:, keys].repeat_interleave(2, 0)
        scores = (q @ k.mT / 8**0.5).masked_fill(~torch.ones(n, n + m, dtype=torch.bool).tril(m), -torch.inf)
        torch.testing.assert_close(out[i, mine].transpose(0, 1), scores.softmax(-1) @ v)
    assert (out.abs().sum((2, 3)) > 0).sum() == sum(n for n, _ in lengths)  # nothing where there is padding


def test_flash_attention_over_packed_starts() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, h, 9, 8, generator=draw) for h in (4, 2, 2))
    starts = torch.tensor([0, 2, 9], dtype=torch.int32)
    out, _ = flash.attend(None, query, key, value, None, cu_seq_lens_q=starts, max_length_q=7)
    for a, b in ((0, 2), (2, 9)):
        alone, _ = flash.attend(None, query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], None)
        torch.testing.assert_close(out[:, a:b], alone)
    assert flash.attend(None, query, key, value, None)[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert flash.attend(None, query, key, value, None)[0].dtype == torch.bfloat16
