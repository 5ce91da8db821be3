"""Losses of the log-probabilities of single tokens. All return ``[G]``, one number per pair."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from alignkit import Pairs, loss
from pydantic import Field

from alignkit_losses.margins import REFERENCE, Beta


@loss("Zhou et al. 2024, WPO, https://arxiv.org/abs/2406.11827", equation="2", needs=REFERENCE)
def wpo(pairs: Pairs, *, beta: Beta = 0.1) -> torch.Tensor:
    """Return the loss of DPO times the likelihoods per token of both answers, ``exp(log pi(y|x) / |y|)``, without gradient.

    The weights are those without the paper's alignment, which needs every token's whole distribution.

    >>> from alignkit_losses.examples import pairs
    >>> wpo(pairs(chosen=[-1.0], rejected=[-3.0], lengths=([1], [3])), beta=0.1)  # exp(-2) times DPO's
    tensor([0.0809])
    """
    weights = torch.exp(pairs.chosen.means.logps + pairs.rejected.means.logps).detach()
    return weights * -F.logsigmoid(beta * pairs.margins)


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
    sums = ratios.new_zeros(len(lengths)).index_add(0, answer, ratios)  # (S,)
    return -F.logsigmoid(beta * (sums[::2] - sums[1::2]))
