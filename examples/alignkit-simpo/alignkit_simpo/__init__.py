"""SimPO: Simple Preference Optimization with a Reference-Free Reward (Meng et al. 2024, arXiv:2405.14734)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from alignkit import Batch, LossOutput, LossTerm, Method, Policy, Settings, hookimpl, preference_metrics
from pydantic import Field


def simpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, *, beta: float, gamma: float) -> torch.Tensor:
    """Return the loss of each pair, ``[G]``, from mean log-probabilities per token (equation 6).

        L = -log sigmoid(beta (log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|) - gamma)

    >>> simpo_loss(torch.tensor([-1.0]), torch.tensor([-1.5]), beta=2.0, gamma=1.0)
    tensor([0.6931])
    """
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


class SimPOSettings(Settings):
    """Settings of simpo."""

    beta: float = Field(2.0, gt=0, description="scale of the reward (the mean log-probability per token)")
    gamma: float = Field(1.0, ge=0, description="target margin between the rewards of chosen and rejected")


class SimPO(Method[SimPOSettings]):
    """Preference optimisation with the mean log-probability as reward, a target margin and no reference model."""

    name = "simpo"
    paper = "Meng et al. 2024, SimPO, https://arxiv.org/abs/2405.14734"
    rows = "preference"
    settings_type = SimPOSettings
    defaults = {"train.learning_rate": 1e-6}

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compute :func:`simpo_loss` over the mean log-probabilities of both answers."""
        s = self.settings
        scores = policy.score(batch.examples)
        chosen, rejected = scores.split(scores.means())  # (G,) each
        losses = simpo_loss(chosen, rejected, beta=s.beta, gamma=s.gamma)
        metrics = preference_metrics(s.beta * chosen, s.beta * rejected, chosen, rejected)
        return LossOutput([LossTerm("simpo", losses.sum(), "rows")], metrics)
