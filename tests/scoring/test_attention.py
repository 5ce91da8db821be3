"""Attention by blocks equals dense attention with the mask of the same tree, for all windows and numbers of shared heads."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from alignkit.contract.batch import Example
from alignkit.scoring import blocks as blocks_module
from alignkit.scoring.attention import packed_attention
from alignkit.scoring.blocks import blocks
from alignkit.scoring.plan import make_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.helpers.scoring import rows


def tree_mask(plan, window):
    """Return the mask ``[T, T]``, built token by token."""
    where = []
    for group, segment in enumerate(plan.segments):
        where += [(group, 0, i) for i in range(segment.prompt)]
        for k, length in enumerate(segment.completions, 1):
            where += [(group, k, segment.prompt + i) for i in range(length)]
    return torch.tensor(
        [
            [
                a[0] == b[0] and b[1] in (0, a[1]) and b[2] <= a[2] and (window is None or a[2] - b[2] < window)
                for b in where
            ]
            for a in where
        ]
    )


def dense(query, key, value, mask, scale):
    groups = query.shape[1] // key.shape[1]
    return nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), attn_mask=mask, scale=scale
    )


lengths = st.integers(1, 9)
trees = st.lists(st.tuples(lengths, st.lists(lengths, max_size=3)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(trees=trees, window=st.none() | st.integers(1, 20), heads=st.sampled_from([(4, 4), (4, 2), (4, 1)]))
def test_blocks_equal_dense_attention(trees, window, heads):
    examples = [Example(str(i), [1] * p, tuple([1] * n for n in comps)) for i, (p, comps) in enumerate(trees)]
    plan = make_plan(examples)
    tokens = plan.input_ids.shape[1]
    torch.manual_seed(0)
    states = [torch.randn(1, tokens, h, 8, dtype=torch.float64).transpose(1, 2).requires_grad_() for h in
              (heads[0], heads[1], heads[1])]  # fmt: skip
    got, _ = packed_attention(nn.Module(), *states, None, scaling=0.4, sliding_window=window, alignkit_plan=plan)
    want = dense(*states, tree_mask(plan, window), 0.4).transpose(1, 2)
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-8)
    weights = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), states),
        torch.autograd.grad((want * weights).sum(), states),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("window", [None, 5, 40])
def test_windows_cut_into_several_blocks(window, monkeypatch):
    """Long sequences under a window are cut into blocks of queries, which together cover every pair once."""
    monkeypatch.setattr(blocks_module, "_WINDOW_ROWS", 4)
    plan = make_plan(rows(3, completions=3, most=30))
    tokens = plan.input_ids.shape[1]
    seen = torch.zeros(tokens, tokens, dtype=torch.long)
    for part in blocks.__wrapped__(plan.segments, window):
        for i, q in enumerate(range(part.q0, part.q1)):
            for j, k in enumerate(range(part.k0, part.k1)):
                if part.offset is not None:
                    seen[q, k] += 0 <= part.offset + i - j < window
                else:
                    seen[q, k] += not part.causal or j <= i
    assert torch.equal(seen, tree_mask(plan, window).long())


def test_pairs_cost_three_blocks_and_single_completions_one():
    """A prompt and its first completion are one causal sequence."""
    assert len(blocks(make_plan(rows(1, completions=1)).segments, None)) == 1
    assert len(blocks(make_plan(rows(1, completions=2)).segments, None)) == 3
    assert len(blocks(make_plan(rows(1, completions=4)).segments, None)) == 5


@pytest.mark.parametrize("argument", ["softcap", "s_aux", "position_bias"])
def test_what_blocks_cannot_compute_is_refused(argument):
    plan = make_plan(rows(1))
    states = torch.randn(1, 2, plan.input_ids.shape[1], 8)
    with pytest.raises(NotImplementedError, match=argument):
        packed_attention(nn.Module(), states, states, states, None, alignkit_plan=plan, **{argument: torch.ones(1)})
    with pytest.raises(NotImplementedError, match="dropout"):
        packed_attention(nn.Module(), states, states, states, None, dropout=0.1, alignkit_plan=plan)


HIDDEN_OPERATOR = """
import sys, torch
namespace, find = type(torch.ops.aten), type(torch.ops.aten).__getattr__
def without(self, name):
    if name == sys.argv[1]:
        raise AttributeError(name)
    return find(self, name)
namespace.__getattr__ = without
vars(torch.ops.aten).pop(sys.argv[1], None)  # torch caches operators

from alignkit.errors import ModelError
from alignkit.scoring.scorer import install
from tests.helpers.scoring import build
model = build("llama")
print(install(model).backend)
try:
    install(model, "packed")
except ModelError as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", ["", "_backward"])
def test_torch_without_cpu_flash_attention_scores_by_another_backend(suffix):
    """The operators are private to PyTorch: without one of them the scorer must still import and train."""
    operator = f"_scaled_dot_product_flash_attention_for_cpu{suffix}"
    done = subprocess.run([sys.executable, "-c", HIDDEN_OPERATOR, operator], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    backend, refusal = done.stdout.splitlines()
    assert backend == "rows"
    assert f"torch {torch.__version__} has no CPU flash attention" in refusal
