"""Losses without a reference. All return ``[G]``, one number per pair."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from alignkit import Pairs, loss
from pydantic import Field

from alignkit_losses.margins import Smoothing

Margin = Annotated[
    float,
    Field(ge=0, description="target margin between the rewards of both answers", json_schema_extra={"neutral": 0}),
]
Scale = Annotated[float, Field(gt=0, description="factor of the log-probabilities in the loss")]


def sums(pairs: Pairs, *, beta: float = 1.0, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``beta`` times the log-probabilities of chosen and rejected answers, ``[G]`` each."""
    return beta * pairs.chosen.logps, beta * pairs.rejected.logps


@loss("maximum likelihood", per="tokens", reward=lambda pairs: (pairs.chosen.means.logps, pairs.rejected.means.logps))
def nll(pairs: Pairs) -> torch.Tensor:
    """Return ``-log pi(y_w|x)``; over the step it is divided by the tokens of the chosen answers.

    >>> from alignkit_losses.examples import pairs
    >>> nll(pairs(chosen=[-3.0], rejected=[-4.0]))
    tensor([3.])
    """
    return -pairs.chosen.logps


@loss(
    "Xu et al. 2024, Contrastive Preference Optimization, https://arxiv.org/abs/2401.08417",
    equation="3",
    nll_weight=1.0,
    reward=sums,
)
def cpo(pairs: Pairs, *, beta: Scale = 0.1, label_smoothing: Smoothing = 0.0) -> torch.Tensor:
    """Return ``-log sigmoid(beta (log pi(y_w|x) - log pi(y_l|x)))``; the NLL of the paper is the setting ``alpha``.

    >>> from alignkit_losses.examples import pairs
    >>> cpo(pairs(chosen=[-10.0], rejected=[-12.0]), beta=0.1)  # -log sigmoid(0.2)
    tensor([0.5981])
    """
    z = beta * (pairs.chosen.logps - pairs.rejected.logps)
    return -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)


@loss("Meng et al. 2024, SimPO, https://arxiv.org/abs/2405.14734", equation="6")
def simpo(
    pairs: Pairs,
    *,
    beta: Scale = 2.0,
    gamma: Margin = 1.0,
) -> torch.Tensor:
    """Return ``log(1 + exp(gamma - beta (log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|)))``.

    >>> from alignkit_losses.examples import pairs
    >>> simpo(pairs(chosen=[-1.0], rejected=[-1.5]))
    tensor([0.6931])
    """
    return -F.logsigmoid(beta * (pairs.chosen.means.logps - pairs.rejected.means.logps) - gamma)


def alphapo_rewards(pairs: Pairs, *, beta: float, shape: float, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``beta (1 - p^-shape) / shape`` of both answers, ``[G]`` each, p the likelihood per token."""

    def reward(logps: torch.Tensor) -> torch.Tensor:
        return beta * (logps if shape == 0 else -torch.expm1(-shape * logps) / shape)

    return reward(pairs.chosen.means.logps), reward(pairs.rejected.means.logps)


@loss("Gupta et al. 2025, AlphaPO, https://arxiv.org/abs/2501.03884", reward=alphapo_rewards)
def alphapo(
    pairs: Pairs,
    *,
    beta: Scale = 2.5,
    gamma: Margin = 0.1,
    shape: Annotated[
        float,
        Field(description="shape of the reward (alpha of the paper); 0 is SimPO", json_schema_extra={"neutral": 0}),
    ] = 0.25,
) -> torch.Tensor:
    """Return ``log(1 + exp(gamma - (R_w - R_l)))`` with ``R = beta (1 - p^-shape) / shape``, p the likelihood per token.

    >>> from alignkit_losses.examples import pairs
    >>> alphapo(pairs(chosen=[-1.0], rejected=[-1.5]), beta=2.0, gamma=1.0, shape=0.0)
    tensor([0.6931])
    """
    chosen, rejected = alphapo_rewards(pairs, beta=beta, shape=shape)
    return -F.logsigmoid(chosen - rejected - gamma)


@loss("Zhao et al. 2023, SLiC-HF, https://arxiv.org/abs/2305.10425", nll_weight=0.1, reward=sums)
def slic(
    pairs: Pairs, *, delta: Annotated[float, Field(gt=0, description="margin of the log-probabilities")] = 1.0
) -> torch.Tensor:
    """Return ``max(0, delta - log pi(y_w|x) + log pi(y_l|x))``; the regularisation of the paper is the setting ``alpha``.

    >>> from alignkit_losses.examples import pairs
    >>> slic(pairs(chosen=[-3.0], rejected=[-3.5]))
    tensor([0.5000])
    """
    return torch.relu(delta - pairs.chosen.logps + pairs.rejected.logps)


def _odds_ratio_rewards(pairs: Pairs, *, lam: float) -> tuple[torch.Tensor, torch.Tensor]:
    return lam * pairs.chosen.means.logps, lam * pairs.rejected.means.logps


@loss(
    "Hong et al. 2024, ORPO, https://arxiv.org/abs/2403.07691", equation="6", nll_weight=1.0, reward=_odds_ratio_rewards
)
def odds_ratio(
    pairs: Pairs, *, lam: Annotated[float, Field(ge=0, alias="lambda", description="weight beside the NLL")] = 0.1
) -> torch.Tensor:
    """Return lambda times ``log(1 + odds(y_l) / odds(y_w))``, odds ``p / (1 - p)`` of the likelihood per token; its NLL is ``alpha``.

    >>> from alignkit_losses.examples import pairs
    >>> odds_ratio(pairs(chosen=[-0.5], rejected=[-1.5]), lam=1.0)
    tensor([0.1709])
    """

    def log_odds(logps: torch.Tensor) -> torch.Tensor:
        x = logps.clamp(max=-1e-6)  # a likelihood of 1 has no finite odds
        return x - torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))

    return -lam * F.logsigmoid(log_odds(pairs.chosen.means.logps) - log_odds(pairs.rejected.means.logps))
