"""Losses as pure functions of log-ratios. ``G``: number of pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

LOSSES = ("sigmoid", "ipo", "hinge", "robust")


def dpo_loss(
    chosen_ratios: torch.Tensor,
    rejected_ratios: torch.Tensor,
    *,
    beta: float,
    kind: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the loss of each pair, given the log-ratios of policy to reference.

        h = (log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x))
        sigmoid  -log sigmoid(beta h)                                    DPO, arXiv:2305.18290, eq. 7
                 -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h)   with label smoothing eps: cDPO
        robust   (-(1 - eps) log sigmoid(beta h) + eps log sigmoid(-beta h)) / (1 - 2 eps)   arXiv:2403.00409, eq. 7
        hinge    max(0, 1 - beta h)                                      SLiC, arXiv:2305.10425, normalised as RSO
        ipo      (h - 1 / (2 beta))^2                                    arXiv:2310.12036, eq. 17

    Args:
        chosen_ratios: ``[G]`` log pi - log ref of the chosen completions (sums, or means for length-normalised losses).
        rejected_ratios: ``[G]`` the same for the rejected completions.
        beta: strength of the implicit KL penalty to the reference (tau of ipo).
        kind: one of ``LOSSES``.
        label_smoothing: assumed share of flipped labels, below one half.

    Returns:
        ``[G]`` losses, unreduced.

    >>> w, l = torch.tensor([1.0]), torch.tensor([-1.0])
    >>> dpo_loss(w, l, beta=0.1)        # -log sigmoid(0.2)
    tensor([0.5981])
    """
    h = chosen_ratios - rejected_ratios  # (G,)
    match kind:
        case "sigmoid":
            return -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)
        case "robust":
            kept, flipped = (1 - label_smoothing) * F.logsigmoid(beta * h), label_smoothing * F.logsigmoid(-beta * h)
            return (flipped - kept) / (1 - 2 * label_smoothing)
        case "hinge":
            return torch.relu(1 - beta * h)
        case "ipo":
            return (h - 1 / (2 * beta)) ** 2
    raise ValueError(f"unknown loss {kind!r}, known: {', '.join(LOSSES)}")
