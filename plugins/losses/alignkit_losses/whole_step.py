"""Losses whose value for a pair depends on the other pairs of the optimizer step.

The whole step is scored without gradient before it is cut, all processes exchange the numbers of their pairs, and the loss is
evaluated on all of them: its values, and its derivatives by every answer's log-probability, are columns of the batch. The gradient
pass then uses ``value + slope (x - x.detach())``, whose gradient is that of the loss of the whole step for any cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from alignkit import Answers, Batch, Pairs, Rollouts

from alignkit_losses.scored import pairs_of, values_of

if TYPE_CHECKING:
    from alignkit_losses.settings import Term


def prepare(terms: Sequence[Term], batch: Batch, rollouts: Rollouts, kept: dict[str, dict[str, float]]) -> Batch:
    """Return the batch with a column ``loss/NAME`` of each term: value, and slopes of chosen and rejected; update ``kept`` in training."""
    own = pairs_of(rollouts.score(batch), batch)
    every, mine = rollouts.gather(torch.stack([*own.chosen, *own.rejected], 1).double())
    logps, references, lengths = every.view(-1, 2, 3).unbind(2)  # (G, 2) each, over all processes
    for term in terms:
        leaves = [side.clone().requires_grad_() for side in logps.unbind(1)]
        chosen, rejected = map(Answers, leaves, references.unbind(1), lengths.unbind(1))
        pairs = Pairs(chosen, rejected, state=dict(kept.get(term.name, {})))
        with torch.enable_grad():
            values = values_of(term, pairs)
            slopes = torch.autograd.grad(values.sum(), leaves, materialize_grads=True)
        column = torch.stack([values.detach(), *slopes], 1)[mine]
        batch = batch.with_column(f"loss/{term.name}", column.tolist())
        if rollouts.training:
            kept[term.name] = pairs.state
    return batch


def restored(name: str, pairs: Pairs, batch: Batch) -> torch.Tensor:
    """Return the loss of each pair, ``[G]``, with the gradient of the loss of the whole step."""
    chosen, rejected = pairs.chosen.logps, pairs.rejected.logps
    value, *slopes = batch.answers(f"loss/{name}", chosen).view(-1, 3).unbind(1)
    return value + slopes[0] * (chosen - chosen.detach()) + slopes[1] * (rejected - rejected.detach())
