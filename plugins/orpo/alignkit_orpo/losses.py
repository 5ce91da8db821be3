"""Losses as pure functions of mean log-probabilities. ``G``: number of pairs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """Return log(1 - exp(x)) for x < 0, accurate near 0 and far from it, with a finite gradient everywhere.

    Each branch gets only values it is accurate on: ``where`` multiplies the gradient of the discarded branch by zero, and
    0 * inf is NaN. ``x`` is clamped to at most -eps, because a probability of one has no finite odds.
    Source: M. Maechler, Accurately computing log(1 - exp(-|a|)), 2012.

    >>> log1mexp(torch.tensor([-1.0]))
    tensor([-0.4587])
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = x > -math.log(2)
    by_expm1 = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    by_log1p = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, by_expm1, by_log1p)


def log_odds_ratio(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Return log(odds(y_w|x) / odds(y_l|x)) of each pair, where odds = P / (1 - P) and log P is the mean token log-probability.

    ORPO, arXiv:2403.07691, eq. 4 and 7. Arguments and result ``[G]``.
    """
    return (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))


def odds_ratio_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Return L_OR = -log sigmoid(log odds ratio) of each pair, ``[G]`` (arXiv:2403.07691, eq. 7).

    >>> odds_ratio_loss(torch.tensor([-0.5]), torch.tensor([-1.5]))
    tensor([0.1709])
    """
    return -F.logsigmoid(log_odds_ratio(chosen, rejected))
