"""Every kernel computes the attention of separate sequences: output and gradients, for any prompts and completions."""

from __future__ import annotations

import pytest
import torch
from alignkit.contract import Layout
from alignkit_attention import trial
from alignkit_attention.cpu import BLOCKS
from alignkit_attention.sdpa import PLAIN_SDPA
from alignkit_attention.visible import visible
from hypothesis import given, settings

from tests.helpers.attention import (
    CASES,
    HEADS,
    LIMITS,
    REFERENCE,
    TREES,
    Case,
    VarlenAnywhere,
    assert_agrees,
    gradients_of,
    layer_of,
    layout_of,
    separate,
    states_of,
    tokens_of,
    tree_mask,
)

LONG = [(140, (90, 300, 10)), (1, (1, 1)), (70, (5,)), (260, ()), (3, (200, 190, 180, 170))]


@settings(max_examples=40, deadline=None)
@given(trees=TREES, limits=LIMITS, heads=HEADS)
def test_kernels_equal_separate_sequences(device, trees, limits, heads):
    if device == "cuda":  # a kernel is compiled anew for each size of a window or chunk
        limits = {kind: 3 if size < 11 else 17 for kind, size in limits.items()}
    for case in CASES[device]:
        layer = layer_of(heads, size=16, dtype=case.dtype, device=device, scale=0.4, **limits)
        if case.kernel.refusal(layer) is None:
            assert_agrees(case, layout_of(trees), layer)


@pytest.mark.parametrize("limits", [{}, {"window": 64}, {"window": 300}, {"chunk": 128}], ids=str)
def test_kernels_equal_separate_sequences_on_long_rows(device, limits):
    """Windows and chunks that cut sequences into several blocks, with tokens that fill whole blocks."""
    for case in CASES[device]:
        layer = layer_of((4, 2), size=16, dtype=case.dtype, device=device, **limits)
        assert case.kernel.refusal(layer) is None
        assert_agrees(case, layout_of(LONG), layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limits", [{}, {"window": 7}, {"chunk": 5}], ids=str)
def test_merging_is_as_exact_as_the_dtype(dtype, limits):
    """The error of a kernel is that of rounding its result, not that of the number of completions it merged."""
    layout = layout_of([(12, (9,) * 12), (5, (3, 8))])
    bound = 1e-5 if dtype == torch.float32 else 0.02
    for kernel in (BLOCKS, VarlenAnywhere(REFERENCE), PLAIN_SDPA):
        assert_agrees(
            Case(type(kernel).__name__, kernel, dtype, bound), layout, layer_of((4, 2), dtype=dtype, **limits)
        )


@pytest.mark.parametrize("prompt", [40, 255])
def test_short_blocks_of_bfloat16_are_computed_in_float32(prompt):
    """bfloat16 kernels are not made for each of their lengths, and the only error is that of rounding the result."""
    layout, layer = layout_of([(prompt, (1,))]), layer_of((4, 2), dtype=torch.bfloat16)
    states = states_of(layout, layer)
    exact = [state.detach().float().requires_grad_() for state in states]
    wide = layer_of((4, 2), dtype=torch.float32)
    assert torch.equal(BLOCKS.attend(*states, layout, layer), BLOCKS.attend(*exact, layout, wide).to(torch.bfloat16))


@settings(max_examples=40, deadline=None)
@given(trees=TREES, limits=LIMITS, heads=HEADS)
def test_the_mask_function_in_dense_attention_equals_separate_sequences(trees, limits, heads):
    """The function that FlexAttention is given: forward and backward, because the CPU has no backward of FlexAttention."""
    layout, layer = layout_of(trees), layer_of(heads, softcap=5.0, **limits)
    states = states_of(layout, layer)
    found = gradients_of(lambda q, k, v: trial.dense(q, k, v, layout, layer), states)
    wanted = gradients_of(lambda q, k, v: separate(q, k, v, layout, layer), states)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-8)
    index = torch.arange(tokens_of(layout))
    seen = visible(layout, torch.device("cpu"), layer.window, layer.chunk)
    assert torch.equal(seen(index, index, index[:, None], index[None]), tree_mask(layout, layer.window, layer.chunk))


def test_a_layout_is_derived_once():
    layout, made = Layout(()), []
    for key in ("a", "a", ("b", 1)):
        layout.once(key, lambda key=key: made.append(key))
    assert made == ["a", ("b", 1)]


@pytest.mark.parametrize("kernel", [BLOCKS, VarlenAnywhere(REFERENCE), PLAIN_SDPA], ids=["blocks", "varlen", "sdpa"])
def test_soft_capping_is_refused_by_kernels_without_it(kernel):
    assert kernel.refusal(layer_of((4, 2), softcap=30.0)) == "does not support softcap"


class Wrong(type(PLAIN_SDPA)):
    def attend(self, query, key, value, layout, layer):
        out = super().attend(query, key, value, layout, layer)
        return out + (query - query.detach()) * self.error


def test_a_kernel_with_a_wrong_gradient_does_not_pass_the_trial():
    """The probe compares log-probabilities alone: on a GPU a kernel is tried with gradients before it is used."""
    wrong = Wrong()
    for error, reason in ((0.0, None), (0.5, "differs from dense attention in its gradient by")):
        wrong.error = error
        trial._trial.cache_clear()
        found = trial._trial(wrong, layer_of((4, 2), dtype=torch.float32, window=50, softcap=None))
        assert found is reason or str(found).startswith(str(reason))


def test_a_kernel_that_raises_does_not_pass_the_trial():
    assert "fails: RuntimeError" in str(trial._trial(PLAIN_SDPA, layer_of((4, 3), dtype=torch.float32)))
