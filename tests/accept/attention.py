"""Acceptance check of compiled FlexAttention: each variant takes PyTorch's compiler some twenty seconds on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.helpers.attention import FlexAnywhere, layer_of, layout_of, separate, states_of

_ROWS = [[(100, (150, 30, 70)), (9, (1, 1)), (130, ())], [(40, (30, 20)), (200, (7, 9, 60)), (1, (1,))]]


def compiled_attention(work: Path) -> dict[str, Any]:
    """The compiled forward with its block mask agrees with separate sequences; other rows of a length compile nothing."""
    kernel, worst = FlexAnywhere(), 0.0
    variants: list[dict[str, Any]] = [{}, {"window": 40}, {"chunk": 32}, {"softcap": 2.0}]
    for limits in variants:
        layer = layer_of((4, 2), size=16, dtype=torch.float32, **limits)
        for rows in _ROWS:
            layout = layout_of(rows)
            states = [state.detach() for state in states_of(layout, layer)]
            difference = kernel.attend(*states, layout, layer) - separate(*states, layout, layer)
            worst = max(worst, float(difference.abs().max()))
    assert worst < 1e-5, f"largest difference {worst:.1e}"
    assert kernel.compilations == len(variants), f"{kernel.compilations} compilations for {len(variants)} variants"
    return {"largest difference": worst, "compilations": kernel.compilations}
