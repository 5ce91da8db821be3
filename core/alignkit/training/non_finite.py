"""The guard against non-finite numbers: a run stops before they reach the weights, and names the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from alignkit.contract import Batch, LossOutput
from alignkit.errors import RunFailedError

SHOWN = 8
"""Maximum rows named in the message."""


def gradient_norm(model: torch.nn.Module) -> torch.Tensor:
    """Return the 2-norm of all gradients as they are after the backward pass, unclipped (0 where there are none)."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    full: torch.Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP2: a sharded scalar
    return full


def check_finite(
    losses: Sequence[torch.Tensor], norm: torch.Tensor | None, describe: Callable[[str], str], device: torch.device
) -> None:
    """Raise :class:`RunFailedError` if a micro-batch's loss or the gradient norm of an optimizer step is not finite.

    ``norm`` is None where overflow is expected and skipped (the gradient scaler of fp16). ``describe`` makes the error's
    message from what is not finite. The one synchronisation is that of ``device``.
    """
    values = [loss.float() for loss in losses] + ([] if norm is None else [norm.float().to(device)])
    if bool(torch.isfinite(torch.stack(values)).all()):
        return
    in_loss = not all(math.isfinite(float(loss)) for loss in losses)
    raise RunFailedError(describe("loss" if in_loss or norm is None else f"gradient (norm {float(norm)})"))


def guilty_rows(cuts: Sequence[Batch], loss_of: Callable[[Batch], LossOutput]) -> str:
    """Return the ids of the rows whose loss alone is not finite, or of all rows of the step where none is."""
    rows = [cut.rows([i]) for cut in cuts for i in range(len(cut))]
    guilty = [row for row in rows if not all(math.isfinite(float(term.sum)) for term in loss_of(row).terms)]
    names = [row.examples[0].id for row in guilty or rows]
    return ", ".join(names[:SHOWN]) + (" and more" if len(names) > SHOWN else "")
