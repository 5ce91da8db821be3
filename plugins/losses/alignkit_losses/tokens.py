"""Losses of the log-probabilities of single tokens, or of their distributions over the vocabulary. All return ``[G]``, one number per pair."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from alignkit import Pairs, loss
from pydantic import Field

from alignkit_losses.margins import REFERENCE, Beta

ZENG = "Zeng et al. 2024, Token-level Direct Preference Optimization, https://arxiv.org/abs/2404.11999"


Alignment = Literal["sampled", "greedy", "none"]


def usual_logps(policy: torch.Tensor, *, alignment: Alignment) -> torch.Tensor:
    """Return the log of a usual token's probability, ``[n]``, without gradient, from log-probabilities ``[n, V]``.

    That is the expected probability of a sampled token, ``sum p^2``, or the probability of the likeliest one; 0 for ``none``.

    >>> usual_logps(torch.tensor([[0.25, 0.75]]).log(), alignment="sampled")  # log(0.25^2 + 0.75^2)
    tensor([-0.4700])
    """
    given = policy.detach()
    if alignment == "sampled":
        return (2 * given).logsumexp(-1)
    return given.amax(-1) if alignment == "greedy" else given.new_zeros(len(given))


@loss("Zhou et al. 2024, WPO, https://arxiv.org/abs/2406.11827", equation="2", needs=REFERENCE, of_tokens=usual_logps)
def wpo(
    pairs: Pairs,
    *,
    beta: Beta = 0.1,
    alignment: Annotated[
        Alignment,
        Field(
            description="what a token's probability is relative to in the weights: that of a token sampled from the policy "
            "(sampled), of the likeliest token (greedy), or 1 (none)"
        ),
    ] = "sampled",
) -> torch.Tensor:
    """Return the loss of DPO times the weights of both answers, ``exp(mean log(pi(y_t) / sum_v pi(v)^2))``, without gradient.

    >>> from alignkit_losses.examples import pairs
    >>> wpo(pairs(chosen=[-1.0], rejected=[-2.0], of_tokens=[-0.5, -0.5]), beta=0.1)  # exp(-0.5 - 1.5) times DPO's
    tensor([0.0872])
    """
    weights = pairs.chosen.means.logps + pairs.rejected.means.logps
    if alignment != "none":
        chosen, rejected = sums(pairs, pairs.of_tokens)
        weights = weights - chosen / pairs.chosen.lengths - rejected / pairs.rejected.lengths
    return weights.detach().exp() * -F.logsigmoid(beta * pairs.margins)


@loss("Liu et al. 2024, Length Desensitization in DPO, https://arxiv.org/abs/2409.06411", needs=REFERENCE)
def ld_dpo(
    pairs: Pairs,
    *,
    beta: Beta = 0.1,
    tail: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="weight of tokens beyond the shorter answer (alpha); 1: DPO",
            json_schema_extra={"neutral": 1},
        ),
    ] = 0.5,
) -> torch.Tensor:
    """Return the loss of DPO with weight ``tail`` on the tokens of the longer answer that the shorter one has no counterpart of.

    >>> ld_dpo.paper.partition(",")[0]
    'Liu et al. 2024'
    """
    assert pairs.tokens is not None
    assert pairs.tokens_reference is not None
    lengths, answer = pairs.tokens.lengths, pairs.tokens.sequence
    place = torch.arange(len(answer), device=answer.device) - (lengths.cumsum(0) - lengths)[answer]  # in its answer
    shared = torch.minimum(lengths[::2], lengths[1::2]).repeat_interleave(2)[answer]
    ratios = (pairs.tokens.logps - pairs.tokens_reference.logps) * torch.where(place < shared, 1.0, tail)
    chosen, rejected = sums(pairs, ratios)
    return -F.logsigmoid(beta * (chosen - rejected))


def sums(pairs: Pairs, values: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of values of tokens, ``[N]``, over the tokens of chosen and of rejected answers, ``[G]`` each."""
    assert pairs.tokens is not None
    assert values is not None
    each = values.new_zeros(len(pairs.tokens.lengths)).index_add(0, pairs.tokens.sequence, values)  # (S,)
    return each[::2], each[1::2]


def forward_kl(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return ``KL(ref || pi)`` of every token, ``[n]``, from log-probabilities ``[n, V]``.

    >>> one, other = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    >>> forward_kl(one, other)
    tensor([0.1438])
    """
    return (reference.exp() * (reference - policy)).sum(-1)


def tdpo_rewards(pairs: Pairs, *, beta: float, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``beta (log pi(y|x) / ref(y|x) + KL of y)`` of chosen and rejected answers, ``[G]`` each, as the paper's code."""
    kl = sums(pairs, pairs.of_tokens)
    return beta * (pairs.chosen.ratios + kl[0]), beta * (pairs.rejected.ratios + kl[1])


@loss(ZENG, needs=REFERENCE, of_tokens=forward_kl, reward=tdpo_rewards)
def tdpo1(pairs: Pairs, *, beta: Beta = 0.1) -> torch.Tensor:
    """Return ``log(1 + exp(-beta (h - (D_l - D_w))))`` (TDPO1), ``D`` the sum of ``KL(ref || pi)`` over an answer's tokens.

    >>> from alignkit_losses.examples import pairs
    >>> tdpo1(pairs(chosen=[1.0], rejected=[-1.0], of_tokens=[0.5, 1.5]), beta=0.1)  # -log sigmoid(0.1 (2 - 1))
    tensor([0.6444])
    """
    chosen, rejected = sums(pairs, pairs.of_tokens)
    return -F.logsigmoid(beta * (pairs.margins - (rejected - chosen)))


@loss(ZENG, needs=REFERENCE, of_tokens=forward_kl, reward=tdpo_rewards)
def tdpo(
    pairs: Pairs,
    *,
    beta: Beta = 0.1,
    kl_weight: Annotated[
        float,
        Field(
            ge=0,
            description="weight of the difference of the answers' sequential KL (alpha); 0: DPO",
            json_schema_extra={"neutral": 0},
        ),
    ] = 0.5,
) -> torch.Tensor:
    """Return ``log(1 + exp(-beta (h - kl_weight (D_l - sg(D_w)))))`` (TDPO2): ``D`` as in TDPO1, that of the chosen without gradient.

    >>> from alignkit_losses.examples import pairs
    >>> tdpo(pairs(chosen=[1.0], rejected=[-1.0], of_tokens=[0.5, 1.5]), beta=0.1)  # -log sigmoid(0.1 (2 - 0.5))
    tensor([0.6210])
    """
    chosen, rejected = sums(pairs, pairs.of_tokens)
    return -F.logsigmoid(beta * (pairs.margins - kl_weight * (rejected - chosen.detach())))
