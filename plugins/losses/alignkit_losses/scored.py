"""The pairs of a scored batch, and the value of a loss on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from alignkit import Answers, Batch, Pairs, Policy, Scores
from alignkit.contract.guard import named
from alignkit.errors import PluginError

from alignkit_losses.settings import Term, compares_tokens


def pairs_of(scores: Scores, batch: Batch) -> Pairs:
    """Return the pairs of a scored batch."""
    reference = batch.reference(scores) if "reference" in batch.columns else None
    logps = scores.sums()
    nothing = torch.full_like(logps, float("nan"))
    each = logps, nothing if reference is None else reference.sums(), scores.lengths  # (S,) each
    chosen, rejected = (Answers(*(values[k::2] for values in each)) for k in (0, 1))
    return Pairs(chosen, rejected, scores, reference)


def score(policy: Policy, batch: Batch, terms: Sequence[Term]) -> tuple[Scores, dict[str, torch.Tensor]]:
    """Score a batch, and evaluate the losses' functions of every token's distributions, ``[N]`` by loss.

    Where a loss reads those of the reference, its last hidden states are kept: both heads run together, chunk by chunk.
    """
    functions = {term.name: (call, compares_tokens(term.loss)) for term in terms if (call := term.of_tokens())}
    if not functions:
        return policy.score(batch.examples), {}
    others = []
    if any(compares for _, compares in functions.values()):
        others = [policy.score(batch.examples, reference=True, distributions=lambda given: given).distributions]

    def evaluate(own: torch.Tensor, *reference: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rule = "of_tokens of loss {} must return one number per token"
        return tuple(
            _one_each(call(own, *(reference if compares else ())), len(own), rule.format(name))
            for name, (call, compares) in functions.items()
        )

    scores = policy.score(batch.examples, distributions=lambda own: own.map(evaluate, *others))
    return scores, dict(zip(functions, scores.distributions, strict=True))


def values_of(term: Term, pairs: Pairs) -> torch.Tensor:
    """Return the loss of each pair, ``[G]``; an error names the loss."""
    with named(f"loss {term.name} failed"):
        values = term.loss(pairs, **term.settings)
    return _one_each(values, len(pairs.chosen.logps), f"loss {term.name} must return one number per pair")


def _one_each(values: object, count: int, rule: str) -> torch.Tensor:
    if isinstance(values, torch.Tensor) and values.shape == (count,):
        return values
    given = f"a tensor of shape {list(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
    raise PluginError(f"{rule}, a tensor of shape [{count}], not {given}")
