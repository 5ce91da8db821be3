"""Losses of each answer's log-ratio to the reference, ``r_w`` of the chosen and ``r_l`` of the rejected one. All return ``[G]``."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from alignkit import Pairs, loss
from pydantic import Field

from alignkit_losses.margins import REFERENCE, Beta

CHEN = "Chen et al. 2024, Noise Contrastive Alignment, https://arxiv.org/abs/2402.05369"
OOSTERLINCK = "D'Oosterlinck et al. 2024, Anchored Preference Optimization, https://arxiv.org/abs/2408.06266"
WANG = "Wang et al. 2023, Beyond Reverse KL (f-DPO), https://arxiv.org/abs/2309.16240"


@loss(CHEN, needs=REFERENCE)
def nca_pair(pairs: Pairs, *, beta: Beta = 0.01) -> torch.Tensor:
    """Return ``-log sigmoid(beta r_w) - (log sigmoid(-beta r_w) + log sigmoid(-beta r_l)) / 2``.

    >>> from alignkit_losses.examples import pairs
    >>> nca_pair(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.1)
    tensor([1.3388])
    """
    chosen, rejected = beta * pairs.chosen.ratios, beta * pairs.rejected.ratios
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


@loss(
    "Wu et al. 2024, Self-Play Preference Optimization, https://arxiv.org/abs/2405.00675",
    equation="4.7",
    needs=REFERENCE,
)
def sppo_hard(pairs: Pairs, *, beta: Beta = 0.001) -> torch.Tensor:
    """Return ``(r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2``, 1 / beta the eta of the paper; a chosen answer always wins.

    >>> from alignkit_losses.examples import pairs
    >>> sppo_hard(pairs(chosen=[4.0], rejected=[-3.0]), beta=0.1)
    tensor([5.])
    """
    return (pairs.chosen.ratios - 0.5 / beta) ** 2 + (pairs.rejected.ratios + 0.5 / beta) ** 2


@loss(OOSTERLINCK, equation="7", needs=REFERENCE)
def apo_zero(pairs: Pairs, *, beta: Beta = 0.1) -> torch.Tensor:
    """Return ``1 - sigmoid(beta r_w) + sigmoid(beta r_l)``: for chosen answers better than the model's own.

    >>> from alignkit_losses.examples import pairs
    >>> apo_zero(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.1)
    tensor([0.9500])
    """
    return 1 - torch.sigmoid(beta * pairs.chosen.ratios) + torch.sigmoid(beta * pairs.rejected.ratios)


@loss(OOSTERLINCK, equation="8", needs=REFERENCE)
def apo_down(pairs: Pairs, *, beta: Beta = 0.1) -> torch.Tensor:
    """Return ``sigmoid(beta r_w) + 1 - sigmoid(beta (r_w - r_l))``: for chosen answers worse than the model's own.

    >>> from alignkit_losses.examples import pairs
    >>> apo_down(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.1)
    tensor([0.9751])
    """
    return torch.sigmoid(beta * pairs.chosen.ratios) + 1 - torch.sigmoid(beta * pairs.margins)


def _divergence(pairs: Pairs, beta: float, score: str, order: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``beta f'(exp r)`` of both answers, ``[G]`` each, up to a constant, for the divergence called ``score``."""

    def slope(ratios: torch.Tensor) -> torch.Tensor:
        if score == "forward_kl":
            return beta * (1 - torch.exp(-ratios))
        if score == "js":
            return beta * (math.log(2) + F.logsigmoid(ratios))
        if abs(order - 1) < 1e-6:  # the limit is the reverse KL
            return beta * ratios
        return beta * torch.expm1(((order - 1) * ratios).clamp(max=80.0)) / (order - 1)

    return slope(pairs.chosen.ratios), slope(pairs.rejected.ratios)


def _forward_kl_rewards(pairs: Pairs, *, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    return _divergence(pairs, beta, "forward_kl")


def _js_rewards(pairs: Pairs, *, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    return _divergence(pairs, beta, "js")


def _alpha_rewards(pairs: Pairs, *, beta: float, order: float) -> tuple[torch.Tensor, torch.Tensor]:
    return _divergence(pairs, beta, "alpha", order)


@loss(WANG, needs=REFERENCE, reward=_forward_kl_rewards)
def forward_kl(pairs: Pairs, *, beta: Beta = 0.1) -> torch.Tensor:
    """Return the loss of DPO for the forward KL: the score of an answer is ``1 - exp(-r)`` instead of ``r``.

    >>> from alignkit_losses.examples import pairs
    >>> forward_kl(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.1)
    tensor([0.5825])
    """
    chosen, rejected = _forward_kl_rewards(pairs, beta=beta)
    return -F.logsigmoid(chosen - rejected)


@loss(WANG, needs=REFERENCE, reward=_js_rewards)
def js_divergence(pairs: Pairs, *, beta: Beta = 0.1) -> torch.Tensor:
    """Return the loss of DPO for the Jensen-Shannon divergence: the score of an answer is ``log 2 + log sigmoid(r)``.

    >>> from alignkit_losses.examples import pairs
    >>> js_divergence(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.1)
    tensor([0.6444])
    """
    chosen, rejected = _js_rewards(pairs, beta=beta)
    return -F.logsigmoid(chosen - rejected)


@loss(WANG, needs=REFERENCE, reward=_alpha_rewards)
def alpha_divergence(
    pairs: Pairs,
    *,
    beta: Beta = 0.1,
    order: Annotated[
        float,
        Field(
            gt=0,
            description="order of the divergence (alpha of the paper); 1 is the loss of DPO",
            json_schema_extra={"neutral": 1},
        ),
    ] = 0.5,
) -> torch.Tensor:
    """Return the loss of DPO for an alpha-divergence: the score of an answer is ``(exp((order - 1) r) - 1) / (order - 1)``.

    >>> from alignkit_losses.examples import pairs
    >>> alpha_divergence(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.1)
    tensor([0.5943])
    """
    chosen, rejected = _alpha_rewards(pairs, beta=beta, order=order)
    return -F.logsigmoid(chosen - rejected)
