"""The pairs of a scored batch."""

from __future__ import annotations

import torch
from alignkit import Answers, Batch, Pairs, Scores


def pairs_of(scores: Scores, batch: Batch) -> Pairs:
    """Return the pairs of a scored batch."""
    reference = batch.reference(scores) if "reference" in batch.columns else None
    logps = scores.sums()
    nothing = torch.full_like(logps, float("nan"))
    each = logps, nothing if reference is None else reference.sums(), scores.lengths  # (S,) each
    chosen, rejected = (Answers(*(values[k::2] for values in each)) for k in (0, 1))
    return Pairs(chosen, rejected, scores, reference)
