"""FlexAttention: its block mask, its forward, and how often it is compiled. The CPU has no backward of it."""

from __future__ import annotations

import random

import pytest
import torch
from alignkit_attention.flex import BLOCK, block_map, block_mask, rounded
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.attention import (
    LIMITS,
    TREES,
    FlexAnywhere,
    layer_of,
    layout_of,
    separate,
    states_of,
    tokens_of,
    tree_mask,
)

LIMITS_AND_CAP = [{}, {"window": 40}, {"chunk": 32}, {"softcap": 2.0}, {"window": 40, "softcap": 2.0}]
LONG = [(100, (150, 30, 70)), (9, (1, 1)), (130, ())]


@settings(max_examples=60, deadline=None)
@given(trees=TREES, limits=LIMITS, size=st.sampled_from([1, 2, 4, 8]))
def test_the_block_map_is_that_of_the_dense_mask(trees, limits, size):
    """Blocks without a visible pair are skipped, and blocks called full have no hidden one."""
    layout = layout_of(trees)
    tokens = tokens_of(layout)
    length = -(-tokens // 8) * 8 + 8
    window, chunk = limits.get("window"), limits.get("chunk")
    dense = torch.eye(length, dtype=torch.bool)  # padding attends to itself
    dense[:tokens, :tokens] = tree_mask(layout, window, chunk)
    pairs = dense.unflatten(0, (-1, size)).unflatten(2, (-1, size)).sum((1, 3))
    partial, full = (torch.from_numpy(grid) for grid in block_map(layout.segments, length, window, chunk, size))
    assert torch.equal(partial | full, pairs > 0)
    assert not (partial & full).any()
    assert (pairs[full] == size**2).all()


def test_blocks_below_the_diagonal_are_full_and_need_no_mask():
    partial, full = block_map(layout_of([(300, (100,))]).segments, 512, None, None)
    assert full.tolist() == [[j < i for j in range(4)] for i in range(3)] + [[False] * 4]
    assert partial.tolist() == [[i == j for j in range(4)] for i in range(3)] + [[True] * 4]


@pytest.mark.parametrize("limits", LIMITS_AND_CAP[:3], ids=str)
def test_the_block_mask_skips_and_keeps_what_pytorch_reads_of_it(limits):
    layout = layout_of(LONG)
    length = rounded(tokens_of(layout))
    mask = block_mask(layout, length, limits.get("window"), limits.get("chunk"), torch.device("cpu"))
    partial, full = block_map(layout.segments, length, limits.get("window"), limits.get("chunk"))
    assert torch.equal(mask.to_dense()[0, 0].bool(), torch.from_numpy(partial | full))
    assert mask.shape == (1, 1, length, length)
    assert length % BLOCK == 0


@pytest.mark.parametrize("limits", LIMITS_AND_CAP, ids=str)
def test_the_forward_equals_separate_sequences(limits):
    layout, layer = layout_of(LONG), layer_of((4, 2), dtype=torch.float32, **limits)
    states = states_of(layout, layer)
    with torch.no_grad():
        got = FlexAnywhere(None).attend(*states, layout, layer)
        torch.testing.assert_close(got, separate(*states, layout, layer), atol=2e-6, rtol=1e-5)


def test_rows_of_any_length_compile_a_handful_of_times():
    """Lengths are rounded: a row of another length, or with other prompts, runs what is compiled."""
    kernel, draw = FlexAnywhere("eager"), random.Random(0)
    layer = layer_of((2, 1), dtype=torch.float32)
    with torch.no_grad():
        for _ in range(12):
            trees = [(draw.randint(1, 90), [draw.randint(1, 90) for _ in range(draw.randint(0, 3))]) for _ in range(4)]
            layout = layout_of(trees)
            states = states_of(layout, layer)
            torch.testing.assert_close(
                kernel.attend(*states, layout, layer), separate(*states, layout, layer), atol=2e-6, rtol=1e-5
            )
    assert kernel.compilations == 2  # rows of up to 512 and of up to 1,024 tokens


def test_the_number_of_compilations_does_not_grow_with_the_rows():
    lengths = {rounded(tokens) for tokens in range(1, 16_385)}
    assert lengths == {512, 1024, 2048, 4096, 8192, 16_384}
