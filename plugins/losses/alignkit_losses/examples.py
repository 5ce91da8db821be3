"""Pairs made by hand, for doctests and tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from alignkit import Answers, Pairs


def pairs(
    chosen: Sequence[float],
    rejected: Sequence[float],
    reference: tuple[Sequence[float], Sequence[float]] | None = None,
    lengths: tuple[Sequence[int], Sequence[int]] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Pairs:
    """Return pairs with these log-probabilities; default: reference 0 (they are log-ratios then), one token an answer."""
    given = zip(
        (chosen, rejected),
        reference or ([0.0] * len(chosen),) * 2,
        lengths or ([1] * len(chosen),) * 2,
        strict=True,
    )
    one, other = (Answers(*(torch.tensor(values, dtype=dtype) for values in side)) for side in given)
    return Pairs(one, other)
