"""Whether every side computes the same loss and gradient, on a small model: a condition for comparing their speed.

In float32, alignkit and TRL's defaults must agree to 1e-4. In bfloat16, each side runs as it is measured, and must be as near to
TRL's defaults in float32 as rounding allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench.cells import BenchCell

TOLERANCE = {"float32": {"loss": 1e-4, "gradient": 1e-4}, "bfloat16": {"loss": 2e-2, "gradient": 1e-1}}
"""Largest relative differences. bfloat16 has 8 bits: errors of 2^-8 a product add up over layers to some percent of a gradient."""

STANDARD = "trl-default"

Gradient = Callable[[str, BenchCell], dict[str, Any]]
"""Runs :func:`bench.gpu.worker.gradient` in the process of a side."""


def standard(cell: BenchCell, gradient: Gradient) -> dict[str, Any]:
    """Return loss and gradient of TRL's defaults in float32."""
    return gradient(STANDARD, exact(cell))


def exact(cell: BenchCell) -> BenchCell:
    """Return the cell in float32."""
    return replace(cell, bf16=False, frozen_bf16=False)


def compare(side: str, cell: BenchCell, gradient: Gradient, truth: dict[str, Any]) -> dict[str, Any]:
    """Return the differences of one side in the precision of ``cell``, and whether it agrees."""
    precision = "bfloat16" if cell.bf16 else "float32"
    found = gradient(side, cell)
    return {
        "method": cell.method,
        "tuning": cell.tuning,
        "side": side,
        "precision": precision,
        **differences(found, truth, TOLERANCE[precision]),
        "about": found["about"],
    }


def differences(found: dict[str, Any], truth: dict[str, Any], tolerance: dict[str, float]) -> dict[str, Any]:
    """Return the relative differences of loss and gradient, and whether both are within their tolerance (a NaN is not)."""
    import numpy as np

    a, b = (np.asarray(one["gradient"], np.float64) for one in (found, truth))
    gradient = float(np.linalg.norm(a - b) / np.linalg.norm(b)) if a.shape == b.shape else float("inf")
    loss = abs(found["loss"] - truth["loss"]) / max(abs(truth["loss"]), 1e-12)
    agrees = loss <= tolerance["loss"] and gradient <= tolerance["gradient"]
    return {"loss": loss, "gradient": gradient, "tolerance": tolerance, "agrees": bool(agrees)}
