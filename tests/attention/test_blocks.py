"""A packed row in blocks: together they cover every visible pair of query and key once."""

from __future__ import annotations

import pytest
import torch
from alignkit.scoring.plan import make_plan
from alignkit_attention.blocks import blocks
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.attention import LIMITS, TREES, layout_of, tokens_of, tree_mask
from tests.helpers.scoring import rows


def covered(layout, window, chunk, size):
    """Return how many blocks each pair of query and key is in."""
    tokens = tokens_of(layout)
    seen = torch.zeros(tokens, tokens, dtype=torch.long)
    for part in blocks(layout.segments, window, chunk, size):
        for i, q in enumerate(range(part.q0, part.q1)):
            for j, k in enumerate(range(part.k0, part.k1)):
                if part.offset is not None:
                    seen[q, k] += 0 <= part.offset + i - j < window
                else:
                    seen[q, k] += not part.causal or j <= i
    return seen


@pytest.mark.parametrize("window", [None, 5, 40])
def test_windows_cut_into_several_blocks(window):
    """Long sequences under a window are cut into blocks of queries, which together cover every pair once."""
    layout = make_plan(rows(3, completions=3, most=30)).layout
    assert torch.equal(covered(layout, window, None, 4), tree_mask(layout, window).long())


@settings(max_examples=40, deadline=None)
@given(trees=TREES, limits=LIMITS, size=st.sampled_from([1, 3, 256]))
def test_blocks_cover_every_visible_pair_once(trees, limits, size):
    layout, window, chunk = layout_of(trees), limits.get("window"), limits.get("chunk")
    assert torch.equal(covered(layout, window, chunk, size), tree_mask(layout, window, chunk).long())


def test_pairs_cost_three_blocks_and_single_completions_one():
    """A prompt and its first completion are one causal sequence."""
    assert [len(blocks(make_plan(rows(1, completions=k)).layout.segments)) for k in (1, 2, 4)] == [1, 3, 5]
