"""The guard against non-finite numbers: a run stops before they reach the weights, and names the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain

import torch
import torch.distributed as dist

from alignkit.contract import Batch, LossOutput
from alignkit.errors import RunFailedError
from alignkit.system.together import gathered

SHOWN = 8
"""Maximum rows named in the message."""


def watch_gradients(model: torch.nn.Module, norms: list[torch.Tensor]) -> None:
    """Append the norm of every gradient to ``norms`` as it is made on this process: DeepSpeed takes gradients away."""
    for p in model.parameters():
        if p.requires_grad:
            p.register_hook(lambda gradient: norms.append(torch.linalg.vector_norm(gradient)))  # type: ignore[no-untyped-call]


def gradient_norm(model: torch.nn.Module, norms: list[torch.Tensor]) -> torch.Tensor:
    """Return the 2-norm of all gradients, unclipped (0 where there are none); of ``norms`` instead where they were taken away."""
    norm = torch.nn.utils.get_total_norm(norms or [p.grad for p in model.parameters() if p.grad is not None])
    full: torch.Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP2: a sharded scalar
    return full


def check_finite(
    losses: Sequence[torch.Tensor], norm: torch.Tensor | None, describe: Callable[[str], str], device: torch.device
) -> None:
    """Raise :class:`RunFailedError` on every process if a loss or the gradient norm of a step is not finite on one of them.

    ``norm`` is None where overflow is expected and skipped (fp16). ``describe`` makes the error's message from what is not
    finite. The one synchronisation is that of ``device``.
    """
    loss = torch.stack([loss.float() for loss in losses]).sum()
    values = torch.stack([loss, torch.zeros_like(loss) if norm is None else norm.float().to(device)])
    if dist.is_initialized():
        dist.all_reduce(values)
    if bool(torch.isfinite(values).all()):
        return
    what = "loss" if not math.isfinite(values[0]) else f"gradient (norm {float(values[1])})"
    error = RunFailedError(describe(what))
    error.origin = 0  # type: ignore[attr-defined]  # the process that prints it
    raise error


def guilty_rows(cuts: Sequence[Batch], loss_of: Callable[[Batch], LossOutput]) -> str:
    """Return the ids of the rows of all processes whose loss alone is not finite, or of all rows of the step where none is."""
    rows = [cut.rows([i]) for cut in cuts for i in range(len(cut))]
    guilty = [row for row in rows if not all(math.isfinite(float(term.sum)) for term in loss_of(row).terms)]
    shares = gathered("the rows of the step", [[row.examples[0].id for row in found] for found in (guilty, rows)])
    names = next(([*chain(*found)] for found in zip(*shares, strict=True) if any(found)), [])
    return ", ".join(names[:SHOWN]) + (" and more" if len(names) > SHOWN else "")
