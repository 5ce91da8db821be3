"""The listwise-dpo method: all answers to a prompt, from the best to the worst, relative to a reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from alignkit import (
    Batch,
    Example,
    LossOutput,
    LossTerm,
    Method,
    Metric,
    Policy,
    Settings,
    hookimpl,
    preference_metrics,
)
from pydantic import Field
from torch.nn.utils.rnn import pad_sequence


def plackett_luce_loss(rewards: torch.Tensor, ratings: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each ranking, ``[G]``, under the model of Plackett and Luce.

        L = sum_i log(exp(r_i) + sum_{j rated lower than i} exp(r_j)) - r_i

    Every answer is the first choice among itself and the answers rated lower; answers with equal ratings are not compared with
    each other. With two answers it is the loss of DPO.

    Args:
        rewards: of the answers, ``[G, n]``.
        ratings: of the answers, in any order, ``[G, n]``; NaN where a row has fewer than ``n``.

    >>> plackett_luce_loss(torch.tensor([[0.2, 0.0]]), torch.tensor([[5.0, 1.0]]))  # -log sigmoid(0.2)
    tensor([0.5981])
    """
    compared = ratings[:, None, :] < ratings[:, :, None]  # (G, i, j)
    compared = compared | torch.eye(ratings.shape[1], dtype=torch.bool, device=ratings.device)
    among = rewards[:, None, :].masked_fill(~compared, -torch.inf).logsumexp(-1)
    return (among - rewards).sum(1)


class ListwiseDPOSettings(Settings):
    """Settings of listwise-dpo."""

    beta: float = Field(0.1, gt=0, description="strength of the implicit KL penalty to the reference")
    nll_weight: float = Field(
        0.0, ge=0, alias="alpha", description="weight of the NLL of the best answer, added to the loss"
    )


class ListwiseDPO(Method[ListwiseDPOSettings]):
    """Direct preference optimisation of whole rankings (Plackett-Luce), the prompt scored once for all its answers."""

    name = "listwise-dpo"
    paper = "Rafailov et al. 2023, Direct Preference Optimization, appendix A.3 (Plackett-Luce), https://arxiv.org/abs/2305.18290"
    rows = "ranked"
    needs = frozenset({"reference"})
    settings_type = ListwiseDPOSettings
    defaults = {"train.learning_rate": 1e-6}
    lora_defaults = {"train.learning_rate": 1e-5}

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compute :func:`plackett_luce_loss` of the implicit rewards of all answers."""
        s, scores = self.settings, policy.score(batch.examples)
        sizes = [len(example.completions) for example in batch.examples]

        def by_row(values: torch.Tensor, missing: float = 0.0) -> torch.Tensor:
            return pad_sequence(list(values.split_with_sizes(sizes)), batch_first=True, padding_value=missing)

        sums, means = scores.sums(), by_row(scores.means())
        rewards = by_row(s.beta * (sums - batch.reference(scores).sums()))  # (G, n)
        flat = [rating for example in batch.examples for rating in ratings(example)]
        given = by_row(torch.tensor(flat, dtype=torch.float64, device=rewards.device), float("nan"))
        terms = [LossTerm("plackett_luce", plackett_luce_loss(rewards, given).sum(), "rows")]
        if s.nll_weight:
            terms.append(LossTerm("nll", -by_row(sums)[:, 0].sum(), "tokens", s.nll_weight))
        worst = torch.tensor(sizes, device=rewards.device)[:, None] - 1
        ends = [(of[:, 0], of.gather(1, worst)[:, 0]) for of in (rewards, means)]
        first = rewards.masked_fill(given.isnan(), -torch.inf).argmax(1) == 0
        best_first = {"rewards/best_first": Metric(first.sum().float(), "rows")}
        return LossOutput(terms, preference_metrics(*ends[0], *ends[1]) | best_first)


def ratings(example: Example) -> Sequence[float]:
    """Return the ratings of a row's answers, which come from best to worst; without ratings, every answer is better than the next."""
    given, count = example.fields.get("ratings"), len(example.completions)
    if isinstance(given, list) and len(given) == count and given == sorted(given, reverse=True):
        return given
    return range(count, 0, -1)
