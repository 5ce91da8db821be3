"""Losses of a pair that depend on all pairs of the optimizer step, ``G`` of them. All return ``[G]``.

``pairs.state`` holds what they keep from step to step; in an evaluation it is forgotten afterwards.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from alignkit import Pairs, loss
from pydantic import Field

from alignkit_losses.margins import REFERENCE, Beta, Smoothing

MELNYK = "Melnyk et al. 2024, Distributional Preference Alignment (AOT), https://arxiv.org/abs/2406.05882"
Weight = Annotated[
    float, Field(ge=0, description="weight of the answers of this kind", json_schema_extra={"neutral": 1})
]
MOMENTUM = 0.9
"""Share of a running mean that is kept in a step, as in the papers' code."""


def smoothed(margins: torch.Tensor, beta: float, label_smoothing: float) -> torch.Tensor:
    """Return the logistic loss of margins, ``[G]``, with label smoothing."""
    kept, flipped = F.logsigmoid(beta * margins), F.logsigmoid(-beta * margins)
    return -(1 - label_smoothing) * kept - label_smoothing * flipped


def running(pairs: Pairs, values: torch.Tensor) -> tuple[float, float]:
    """Return the running mean and standard deviation of ``values [G]`` with those of this step, both begun at 0.

    The deviation is at least 1e-3: before the first step all values are 0 but for rounding.
    """
    spread = float(values.std()) if len(values) > 1 else 0.0
    for name, value in (("mean", float(values.mean())), ("spread", spread)):
        pairs.state[name] = MOMENTUM * pairs.state.get(name, 0.0) + (1 - MOMENTUM) * value
    return pairs.state["mean"], max(pairs.state["spread"], 1e-3)


@loss(MELNYK, needs=REFERENCE, whole_step=True)
def aot(pairs: Pairs, *, beta: Beta = 0.1, label_smoothing: Smoothing = 0.0) -> torch.Tensor:
    """Return the logistic loss between the sorted log-ratios of chosen to rejected by the policy and by the reference.

    >>> from alignkit_losses.examples import pairs
    >>> aot(pairs(chosen=[2.0, 1.0], rejected=[0.0, 0.0], reference=([0.0, 1.0], [0.0, 0.0])), beta=0.1)
    tensor([0.6444, 0.6444])
    """
    policy = (pairs.chosen.logps - pairs.rejected.logps).sort().values
    reference = (pairs.chosen.reference - pairs.rejected.reference).sort().values
    return smoothed(policy - reference, beta, label_smoothing)


@loss(MELNYK, needs=REFERENCE, whole_step=True)
def aot_unpaired(pairs: Pairs, *, beta: Beta = 0.1, label_smoothing: Smoothing = 0.0) -> torch.Tensor:
    """Return the logistic loss between the sorted log-ratios to the reference of chosen and of rejected answers.

    >>> from alignkit_losses.examples import pairs
    >>> aot_unpaired(pairs(chosen=[2.0, 1.0], rejected=[0.0, 1.0]), beta=0.1)
    tensor([0.6444, 0.6444])
    """
    return smoothed(pairs.chosen.ratios.sort().values - pairs.rejected.ratios.sort().values, beta, label_smoothing)


@loss(
    "Jung et al. 2024, Binary Classifier Optimization, https://arxiv.org/abs/2404.04656",
    needs=REFERENCE,
    whole_step=True,
)
def bco(
    pairs: Pairs,
    *,
    beta: Beta = 0.01,
    shift: Annotated[
        Literal["running", "none"],
        Field(
            description="subtract the running mean of all rewards, or nothing", json_schema_extra={"neutral": "none"}
        ),
    ] = "running",
) -> torch.Tensor:
    """Return ``-log sigmoid(beta r_w - delta) - log sigmoid(delta - beta r_l)``, delta the mean reward of all steps so far.

    >>> from alignkit_losses.examples import pairs
    >>> bco(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.1)
    tensor([1.2888])
    """
    chosen, rejected, state = beta * pairs.chosen.ratios, beta * pairs.rejected.ratios, pairs.state
    delta = 0.0
    if shift == "running":
        rewards = torch.cat([chosen, rejected]).detach()
        state["sum"] = state.get("sum", 0.0) + float(rewards.sum())
        state["count"] = state.get("count", 0.0) + len(rewards)
        delta = state["sum"] / state["count"]
    return -F.logsigmoid(chosen - delta) - F.logsigmoid(delta - rejected)


@loss("Ethayarajh et al. 2024, KTO, https://arxiv.org/abs/2402.01306", equation="8", needs=REFERENCE, whole_step=True)
def kto(
    pairs: Pairs, *, beta: Beta = 0.1, desirable_weight: Weight = 1.0, undesirable_weight: Weight = 1.0
) -> torch.Tensor:
    """Return the mean of ``1 - sigmoid(beta (r_w - z_l))`` and ``1 - sigmoid(beta (z_w - r_l))``.

    ``z_w`` and ``z_l`` estimate the KL to the reference by the mean log-ratio, at least 0, of the other answers' side, as HALOs
    and TRL's kto_pair do; without gradient.

    >>> from alignkit_losses.examples import pairs
    >>> kto(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.1)
    tensor([0.4626])
    """
    chosen, rejected = pairs.chosen.ratios, pairs.rejected.ratios
    of_chosen, of_rejected = (side.mean().clamp(min=0).detach() for side in (chosen, rejected))
    good = desirable_weight * (1 - torch.sigmoid(beta * (chosen - of_rejected)))
    bad = undesirable_weight * (1 - torch.sigmoid(beta * (of_chosen - rejected)))
    return (good + bad) / 2


@loss("Wu et al. 2024, beta-DPO, https://arxiv.org/abs/2407.08639", needs=REFERENCE, whole_step=True)
def beta_dpo(
    pairs: Pairs,
    *,
    beta: Beta = 0.1,
    adaptation: Annotated[
        float,
        Field(
            ge=0,
            description="how much the mean margin of a step changes beta (alpha)",
            json_schema_extra={"neutral": 0},
        ),
    ] = 0.6,
    dropped: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="share of pairs left out, margins far from the running mean first",
            json_schema_extra={"neutral": 0},
        ),
    ] = 0.2,
) -> torch.Tensor:
    """Return the loss of DPO with ``beta (1 + adaptation (mean h - running mean of h))``, over pairs drawn by how usual their margin is.

    >>> from alignkit_losses.examples import pairs
    >>> beta_dpo(pairs(chosen=[1.0], rejected=[-1.0]), beta=0.1, dropped=0.0)  # beta is 0.1 (1 + 0.6 (2 - 0.2)) = 0.208
    tensor([0.5066])
    """
    margins, state = pairs.margins, pairs.state
    mean, spread = running(pairs, margins.detach())
    kept = max(int(len(margins) * (1 - dropped)), 1)
    state["steps"] = state.get("steps", 0.0) + 1
    draw = torch.Generator().manual_seed(int(state["steps"]))
    chances = torch.exp(-0.5 * ((margins.detach() - mean) / spread) ** 2).clamp(min=1e-30)
    which = torch.multinomial(chances, kept, generator=draw)
    used = max(beta * (1 + adaptation * (float(margins.detach()[which].mean()) - mean)), 1e-3)
    share = torch.zeros_like(margins).index_fill(0, which, len(margins) / kept)
    return share * -F.logsigmoid(used * margins)


def _alpha_dpo_rewards(pairs: Pairs, *, beta: float, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
    return beta * pairs.chosen.means.logps, beta * pairs.rejected.means.logps


@loss(
    "Wu et al. 2024, alpha-DPO, https://arxiv.org/abs/2410.10148",
    needs=REFERENCE,
    whole_step=True,
    reward=_alpha_dpo_rewards,
)
def alpha_dpo(
    pairs: Pairs,
    *,
    beta: Beta = 2.5,
    gamma_beta_ratio: Annotated[
        float, Field(ge=0, description="target margin of the mean log-probabilities, as in SimPO")
    ] = 0.6,
    adaptation: Annotated[
        float,
        Field(
            ge=0,
            description="weight of the margin to the reference in the target margin (alpha)",
            json_schema_extra={"neutral": 0},
        ),
    ] = 0.2,
) -> torch.Tensor:
    """Return SimPO's loss with a target margin that grows with the pair's normalised margin to the reference (means over tokens).

    >>> from alignkit_losses.examples import pairs
    >>> alpha_dpo(pairs(chosen=[-1.0], rejected=[-1.6]), adaptation=0.0)
    tensor([0.6931])
    """
    chosen, rejected = pairs.chosen.means, pairs.rejected.means
    h = (chosen.ratios - rejected.ratios).detach()
    mean, spread = running(pairs, h)
    target = gamma_beta_ratio + adaptation * (h - mean) / spread
    return -F.logsigmoid(beta * (chosen.logps - rejected.logps - target))
