"""The pairs of a scored batch, and the value of a loss on them."""

from __future__ import annotations

import torch
from alignkit import Answers, Batch, Pairs, Scores
from alignkit.contract.guard import named
from alignkit.errors import PluginError

from alignkit_losses.settings import Term


def pairs_of(scores: Scores, batch: Batch) -> Pairs:
    """Return the pairs of a scored batch."""
    reference = batch.reference(scores) if "reference" in batch.columns else None
    logps = scores.sums()
    nothing = torch.full_like(logps, float("nan"))
    each = logps, nothing if reference is None else reference.sums(), scores.lengths  # (S,) each
    chosen, rejected = (Answers(*(values[k::2] for values in each)) for k in (0, 1))
    return Pairs(chosen, rejected, scores, reference)


def values_of(term: Term, pairs: Pairs) -> torch.Tensor:
    """Return the loss of each pair, ``[G]``; an error names the loss."""
    with named(f"loss {term.name} failed"):
        values = term.loss(pairs, **term.settings)
    if not isinstance(values, torch.Tensor) or values.shape != pairs.chosen.logps.shape:
        given = f"a tensor of shape {list(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
        count = len(pairs.chosen.logps)
        raise PluginError(f"loss {term.name} must return one number per pair, a tensor of shape [{count}], not {given}")
    return values
