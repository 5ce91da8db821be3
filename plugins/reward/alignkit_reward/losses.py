"""Losses as pure functions of rewards. ``G``: number of pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def reward_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, *, margins: torch.Tensor | float = 0.0, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the Bradley-Terry loss of each pair, ``[G]``.

        L = -log sigmoid(r_w - r_l - m)                              Stiennon et al. 2020, arXiv:2009.01325, section 3.4;
                                                                     margin m: Llama 2, arXiv:2307.09288, eq. 2
        (1 - eps) L(r_w, r_l) + eps L(r_l, r_w)                      with label smoothing eps

    >>> reward_loss(torch.tensor([1.0]), torch.tensor([1.0]))
    tensor([0.6931])
    """
    h = chosen - rejected - margins  # (G,)
    loss = -(1 - label_smoothing) * F.logsigmoid(h)
    return loss - label_smoothing * F.logsigmoid(-h) if label_smoothing else loss


def centering_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Return the squared sum of each pair's rewards, ``[G]``, which centres rewards at zero (arXiv:2312.09244).

    >>> centering_loss(torch.tensor([1.0]), torch.tensor([-1.0]))
    tensor([0.])
    """
    return (chosen + rejected) ** 2
