"""Loss terms and metrics shared by methods, so that a name means the same in all of them. Shapes: ``G`` rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from alignkit.contract.batch import Batch, Scores
from alignkit.contract.types import LossTerm, Metric
from alignkit.system.device import on_device

if TYPE_CHECKING:
    import torch

NLLScope = Literal["completion", "full"]
NLLReduction = Literal["token", "sequence"]


def nll_term(
    scores: Scores,
    batch: Batch,
    *,
    scope: NLLScope = "completion",
    reduction: NLLReduction = "token",
    weight: float = 1.0,
) -> LossTerm:
    """Return the negative log-likelihood of each row's first completion as a loss term.

    With ``n`` tokens in a row, the term is ``-sum_rows sum_t log p_t`` per token of the step (``reduction="token"``), or
    ``-sum_rows (1 / n) sum_t log p_t`` per row (``reduction="sequence"``).

    Args:
        scores: log-probabilities of the batch, with those of the prompts if ``scope`` is ``full``.
        batch: the scored rows.
        scope: the completion only, or prompt and completion (except the first prompt token, which cannot be scored).
        reduction: mean over all tokens of the step, or mean over rows of the mean over each row's tokens.
        weight: factor of the term in the loss.
    """
    nll, tokens = -scores.split(scores.sums())[0], scores.split(scores.lengths)[0]  # (G,)
    if scope == "full":
        nll = nll - scores.prompt_sums()
        tokens = tokens + on_device([len(e.prompt) - 1 for e in batch.examples], tokens.device)
    if reduction == "sequence":
        return LossTerm("nll", (nll / tokens).sum(), "rows", weight)
    return LossTerm("nll", nll.sum(), "full_tokens" if scope == "full" else "tokens", weight)


def preference_metrics(
    chosen_rewards: torch.Tensor,
    rejected_rewards: torch.Tensor,
    chosen_logps: torch.Tensor,
    rejected_logps: torch.Tensor,
) -> dict[str, Metric]:
    """Return the metrics of a preference batch, detached: ``rewards/*`` and ``logps/*``, means over rows.

    ``rewards/accuracies`` counts an exact tie as one half. ``logps/*`` have the same definition for every method, so that
    runs of different methods can be compared.

    Args:
        chosen_rewards: the method's implicit reward of the chosen completions, ``[G]``.
        rejected_rewards: the same of the rejected completions, ``[G]``.
        chosen_logps: mean log-probability per token of the chosen completions, ``[G]``.
        rejected_logps: the same of the rejected completions, ``[G]``.
    """
    margins = (chosen_rewards - rejected_rewards).detach()
    values = {
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/margins": margins,
        "rewards/accuracies": (margins.sign() + 1) / 2,
        "logps/chosen": chosen_logps,
        "logps/rejected": rejected_logps,
    }
    return {name: Metric(value.detach().sum(), "rows") for name, value in values.items()}
