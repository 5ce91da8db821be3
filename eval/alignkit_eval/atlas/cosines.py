"""How the gradients of objectives agree at the start model: one forward, and a backward of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from alignkit import Batch, Example, RunConfig, Scores
from alignkit.runs.prepare import RunPlan, plan_run, prepare
from numpy.typing import NDArray

ROWS = 64
"""Training pairs that the gradients are computed on."""


class Cosines(NamedTuple):
    """Cosines between the gradients of objectives, ``[A, A]``, and the rows they are over; NaN beside a gradient of zero."""

    values: NDArray[np.float64]
    rows: int


class _OneForward:
    """A policy whose scores have been computed, with their graph; the reference is the policy itself."""

    def __init__(self, model: torch.nn.Module, examples: Sequence[Example], scores: Scores) -> None:
        self.model, self.examples, self.scores = model, examples, scores

    def unpaired(self) -> _OneForward:
        """Return the policy of the same answers as rows of their own, good and bad ones in turn; their prompts are not scored."""
        rows = [
            replace(pair.narrow(k), fields={**pair.fields, "label": k == 0}) for pair in self.examples for k in (0, 1)
        ]
        return _OneForward(self.model, rows, replace(self.scores, rows=len(rows)))

    def score(
        self,
        examples: Sequence[Example],
        *,
        grad: bool = True,
        reference: bool = False,
        distributions: Callable[[Any], Any] = lambda given: given,
        **wanted: Any,
    ) -> Scores:
        if list(examples) != list(self.examples):
            raise ValueError("an objective of the atlas scores other rows than the batch's")
        scores = replace(self.scores, distributions=distributions(self.scores.distributions))
        if grad and not reference:
            return scores
        return replace(scores, logps=scores.logps.detach(), prompt_logps=scores.prompt_logps.detach())


class _OneStep:
    """The rollouts of one process, as methods with statistics over the whole step use them.

    The policy is the reference, so that the log-ratios of other rows, which the estimate of a KL scores, are 0 as well.
    """

    training = True

    def __init__(self, policy: _OneForward) -> None:
        self.policy = policy

    def score(self, batch: Batch, **wanted: Any) -> Scores:
        return self.policy.score(self.policy.examples, grad=False)

    def reference_weights(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return []

    def total(self, *values: float | torch.Tensor) -> list[float]:
        return [float(value) for value in values]

    def gather(self, values: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        return values, list(range(len(values)))


def cosines(configs: Sequence[RunConfig], rows: int = ROWS) -> Cosines:
    """Return the cosines between the gradients of all weights at step 0.

    Args:
        configs: configurations that differ only in their method; model and data are those of the first.
        rows: number of training pairs, from the first on.
    """
    plan = plan_run(configs[0])
    run = prepare(plan)
    train = run.data.train
    examples = [train[i] for i in range(min(rows, len(train)))]
    run.loaded.model.eval()  # without dropout, as the reference
    scores = run.policy.score(examples, prompt=True, distributions=lambda given: given)
    policy = _OneForward(run.loaded.model, examples, scores)
    batch = Batch(examples).with_column("reference", _by_row(scores, examples))
    weights = [weight for weight in run.loaded.model.parameters() if weight.requires_grad]
    directions = []
    for config in configs:
        loss = _loss(plan_run(config), policy, batch)
        gradient = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
        direction = torch.cat([part.flatten() for part in gradient]).double()
        directions.append(direction / direction.norm())
    stacked = torch.stack(directions)
    return Cosines((stacked @ stacked.T).numpy(), len(examples))


def _loss(plan: RunPlan, policy: Any, batch: Batch) -> torch.Tensor:
    """Return a method's loss of the batch."""
    session = plan.session
    if session.method.rows == "unpaired":
        policy = policy.unpaired()
        batch = Batch(policy.examples).with_column("reference", _by_row(policy.scores, policy.examples))
    step: Any = _OneStep(policy) if session.method.whole_step else None
    prepared = session.prepare_batch(policy, batch, 0.0, step)
    terms = session.compute_loss(policy, prepared, 0.0).terms
    return torch.stack([term.weight * term.sum / prepared.counts[term.per] for term in terms]).sum()


def _by_row(scores: Scores, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
    """Return the log-probabilities of each row's completions."""
    ends = scores.lengths.view(len(examples), -1).sum(1).cumsum(0).tolist()
    return np.split(scores.logps.detach().float().cpu().numpy(), ends[:-1])
