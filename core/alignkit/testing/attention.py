"""Conformance tests of kernels of attention."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from alignkit.contract import AttentionLayer, Example
from alignkit.scoring.masks import row_masks
from alignkit.scoring.plan import make_plan
from alignkit.testing.installed import InstalledPlugin


class AttentionConformance(InstalledPlugin):
    """Tests of one installed kernel; set ``name``, and ``device`` and ``dtype`` if it does not compute in float32 on the CPU."""

    group = "align.attention"
    device: ClassVar[str] = "cpu"
    dtype: ClassVar[torch.dtype] = torch.float32
    tolerance: ClassVar[float] = 1e-4

    @pytest.mark.parametrize("limit", [{}, {"sliding_window": 6}, {"attention_chunk_size": 5}], ids=str)
    def test_it_equals_dense_attention(self, limit: dict[str, int]) -> None:
        """Output and gradients are those of dense attention with the mask of the layout, or the layer is refused."""
        plan = make_plan([Example("row", [1] * 11, ([1] * 9, [1] * 14, [1]))]).to(self.device)
        limits = (limit.get(name) for name in ("sliding_window", "attention_chunk_size"))
        layer = AttentionLayer(self.device, self.dtype, 4, 2, 16, None, *limits)
        kernel = self._load()
        if kernel.devices and self.device not in kernel.devices:
            pytest.skip(f"it does not run on {self.device}: set device to one of {', '.join(sorted(kernel.devices))}")
        if (reason := kernel.refusal(layer)) is not None:
            assert limit, f"the kernel refuses a layer without window and chunk: {reason}"
            return
        mask: Any = row_masks(plan, SimpleNamespace(**limit), additive=False, dtype=self.dtype)
        draw = torch.Generator().manual_seed(0)
        shapes = [(1, heads, plan.input_ids.shape[1], 16) for heads in (4, 2, 2)]
        q, k, v = (torch.randn(shape, generator=draw).to(self.device, self.dtype).requires_grad_() for shape in shapes)
        repeated = (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
        want = torch.nn.functional.scaled_dot_product_attention(*repeated, attn_mask=mask)
        got = kernel.attend(q, k, v, plan.layout, layer)
        weights = torch.randn(want.shape, generator=draw).to(want)
        found, wanted = ([out, *torch.autograd.grad((out * weights).sum(), (q, k, v))] for out in (got, want))
        torch.testing.assert_close(found, wanted, atol=self.tolerance, rtol=self.tolerance)
