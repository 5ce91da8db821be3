"""Parity of both sides, a condition for comparing their speed."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from bench.models import move, trainable
from bench.sides import Side

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Parity:
    """Relative differences in float32 of the loss, the whole gradient, and DPO's reference log-probabilities."""

    loss: float
    gradient: float
    reference: float

    @property
    def agrees(self) -> bool:
        """Whether all three are within the tolerance (a NaN is not)."""
        return all(value <= TOLERANCE for value in asdict(self).values())


def check(ours: Side, theirs: Side) -> Parity:
    """Compare two fresh float32 sides on the first optimizer step; adds the same noise to both models' weights.

    References are computed before the noise is added, so that policy and reference differ.
    """
    reference = 0.0
    if ours.cell.method == "dpo":
        reference = relative(ours.reference(0), theirs.reference(0))
    _copy_trained(ours, theirs)
    for side in (ours, theirs):
        move(side.model, scale=0.3)
    (loss, gradient), (their_loss, their_gradient) = _differentiate(ours, 0), _differentiate(theirs, 0)
    return Parity(relative(loss, their_loss), relative(gradient, their_gradient), reference)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return ``|a - b| / |b|`` in double precision."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm())


def _differentiate(side: Side, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    side.model.zero_grad()
    loss = side.step(step)
    gradients = [p.grad for _, p in sorted(trainable(side.model).items())]
    flat = torch.cat([g.flatten() for g in gradients if g is not None])
    side.model.zero_grad()
    return loss, flat


def _copy_trained(source: Side, target: Side) -> None:
    """Copy the source's trainable parameters to the target, because adapters are initialised randomly."""
    mine, theirs = trainable(source.model), trainable(target.model)
    if mine.keys() != theirs.keys():
        odd = sorted(mine.keys() ^ theirs.keys())[0]
        raise RuntimeError(f"the two sides do not train the same parameters: {odd}")
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(mine[name])
