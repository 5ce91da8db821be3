"""What several methods share: the NLL of the answer, and the metrics every preference method logs.

Computed in one place, so that a name means the same thing in each of them. ``G``: rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from alignkit.contract.batch import Batch, Scores
from alignkit.contract.types import LossTerm, Metric

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

    ``scope``: the completion alone, or the prompt as well (``scores`` must then hold the prompts' log-probabilities; the
    first prompt token has none). ``reduction``: mean over the tokens of the step, or over rows of each row's own mean.
    """
    nll, tokens = -scores.split(scores.sums())[0], scores.split(scores.lengths)[0]  # (G,)
    if scope == "full":
        nll = nll - scores.prompt_sums()
        tokens = tokens + tokens.new_tensor([len(e.prompt) - 1 for e in batch.examples])
    if reduction == "sequence":
        return LossTerm("nll", (nll / tokens).sum(), "rows", weight)
    return LossTerm("nll", nll.sum(), "full_tokens" if scope == "full" else "tokens", weight)


def preference_metrics(
    chosen_rewards: torch.Tensor,
    rejected_rewards: torch.Tensor,
    chosen_logps: torch.Tensor,
    rejected_logps: torch.Tensor,
) -> dict[str, Metric]:
    """Return the metrics of a preference batch, all inputs ``[G]``, nothing of it in the graph.

    ``rewards/*``: the method's implicit reward; its accuracy counts an exact tie as one half.
    ``logps/*``: mean log-probability per completion token, in every method, so that runs can be laid side by side.
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
