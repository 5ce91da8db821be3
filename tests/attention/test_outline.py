"""A kernel's outline, which ``--dry-run`` runs in its place, takes as much memory and makes tensors of the same shapes."""

from __future__ import annotations

import pytest
import torch
from alignkit.contract import AttentionKernel, AttentionLayer, Layout, Segment
from alignkit.contract.registry import find, load, usable
from alignkit_attention.flex import FLEX, rounded
from alignkit_attention.varlen import VARLEN
from alignkit_eval.report.tracing import traced

LAYOUT = (Segment(0, 300, (200, 100, 150)), Segment(750, 40, (50,)), Segment(840, 160, ()))
TOKENS = 1000


def _memory(kernel: AttentionKernel, window: int | None, dtype: torch.dtype) -> tuple[int, int, list[torch.Size]]:
    """Return the bytes after the forward pass and the most until the end of the backward pass, and the shapes."""
    layer = AttentionLayer("cpu", dtype, 8, 2, 16, window=window)
    with traced() as trace:
        states = [torch.empty(1, heads, TOKENS, 16, dtype=dtype, requires_grad=True) for heads in (8, 2, 2)]
        out = kernel.attend(*states, Layout(LAYOUT), layer)
        kept = trace.alive.total()
        found = torch.autograd.grad(out, states, torch.empty_like(out))
        return kept, trace.peak, [out.shape, *(one.shape for one in found)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "window"), [("blocks", None), ("blocks", 250), ("sdpa", 250)])
def test_it_takes_as_much_as_the_kernel(name: str, window: int | None, dtype: torch.dtype) -> None:
    """PyTorch has no causal mask of more keys than queries without numbers, which sdpa has where no window cuts."""
    kernel: AttentionKernel = load(find("align.attention", name))
    kept, peak, shapes = _memory(kernel, window, dtype)
    outlined = _memory(kernel.outline(), window, dtype)
    assert outlined[0] == pytest.approx(kept, rel=0.05)
    assert outlined[1] == pytest.approx(peak, rel=0.15)
    assert outlined[2] == shapes


def test_kernels_of_other_devices() -> None:
    """Queries, keys, values, output and log-sum-exps are kept: of all tokens, or of as many as flex is padded to."""
    for kernel, tokens in ((VARLEN, TOKENS), (FLEX, rounded(TOKENS))):
        kept, _, shapes = _memory(kernel.outline(), None, torch.bfloat16)
        numbers = (8 + 2 + 2) * 16 * TOKENS * (1 + (tokens > TOKENS))
        assert kept == pytest.approx(2 * numbers + 2 * 8 * 16 * tokens + 4 * 8 * tokens, rel=0.05)
        assert shapes == [torch.Size((1, heads, TOKENS, 16)) for heads in (8, 8, 2, 2)]


def test_what_a_kernel_refuses_its_outline_refuses() -> None:
    layer = AttentionLayer("cpu", torch.float32, 8, 2, 16)
    for entry in usable("align.attention").values():
        kernel: AttentionKernel = load(entry)
        for one in (layer, layer._replace(softcap=50.0), layer._replace(dtype=torch.bfloat16)):
            assert kernel.outline().refusal(one) == kernel.refusal(one)
