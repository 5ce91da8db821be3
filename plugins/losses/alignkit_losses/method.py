"""The method behind dpo and cpo: a weighted sum of losses of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from alignkit import (
    Batch,
    LossOutput,
    LossTerm,
    Method,
    Pairs,
    Policy,
    Rollouts,
    hookimpl,
    preference_metrics,
)

from alignkit_losses import whole_step
from alignkit_losses.scored import pairs_of, score, values_of
from alignkit_losses.settings import LossSettings, Term, compares_tokens

LossSettingsT = TypeVar("LossSettingsT", bound=LossSettings)


class LossMethod(Method[LossSettingsT]):
    """A method whose loss is chosen among those of the group ``align.losses``; a subclass has a name and settings."""

    rows: ClassVar[Literal["preference", "prompt"]] = "preference"

    def __init__(self, settings: LossSettingsT) -> None:
        super().__init__(settings)
        self.terms = settings.terms()
        if any(term.loss.of_tokens for term in self.terms):
            self.needs |= {"distributions"}
        if reading := [term.name for term in self.terms if compares_tokens(term.loss)]:
            self.needs |= {"start"}
            self.unsharded = f"loss {reading[0]} reads the distributions of the reference; use ddp or zero2"
        self.kept: dict[str, dict[str, float]] = {}
        """What losses of the whole step keep from step to step, by loss."""

    @property
    def _rewarding(self) -> Term:
        """The term whose reward the metrics show: the first one that compares answers."""
        return next((term for term in self.terms if term.name != "nll"), self.terms[0])

    @property
    def whole_step(self) -> bool:
        return any(term.loss.whole_step for term in self.terms)

    def state(self) -> dict[str, float]:
        return {f"{loss}/{name}": value for loss, kept in self.kept.items() for name, value in kept.items()}

    def load_state(self, state: Mapping[str, float]) -> None:
        for key, value in state.items():
            loss, _, name = key.rpartition("/")
            self.kept.setdefault(loss, {})[name] = value

    @hookimpl
    def align_prepare_batch(self, batch: Batch, rollouts: Rollouts | None) -> Batch | None:
        """Score the whole step without gradient and evaluate the losses that depend on all of its pairs."""
        terms = [term for term in self.terms if term.loss.whole_step]
        return whole_step.prepare(terms, batch, rollouts, self.kept) if terms and rollouts else None

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compute the weighted sum of the chosen losses."""
        scores, of_tokens = score(policy, batch, self.terms)
        pairs = pairs_of(scores, batch)
        given = {term.name: replace(pairs, of_tokens=of_tokens.get(term.name)) for term in self.terms}
        terms = []
        for term in self.terms:
            whole = term.loss.whole_step
            values = whole_step.restored(term.name, pairs, batch) if whole else values_of(term, given[term.name])
            terms.append(LossTerm(term.name, values.sum(), term.loss.per, term.weight))
        shown = rewards(self._rewarding, given[self._rewarding.name])
        return LossOutput(terms, preference_metrics(*shown, *scores.split(scores.means())))

    def conventions(self) -> dict[str, Any]:
        """Add every loss with its weight, its settings, and its paper."""
        losses = {
            term.name: {
                "weight": term.weight,
                **term.settings,
                "paper": term.loss.paper,
                "equation": term.loss.equation,
            }
            for term in self.terms
        }
        return super().conventions() | {"losses": losses}


def rewards(term: Term, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the implicit rewards of chosen and rejected answers, ``[G]`` each."""
    if term.loss.reward is not None:
        return term.loss.reward(pairs, **term.settings)
    beta, reference = term.settings.get("beta", 1.0), "reference" in term.loss.needs
    sides = pairs.chosen, pairs.rejected
    if not reference or term.settings.get("ratio") == "mean":
        sides = pairs.chosen.means, pairs.rejected.means
    chosen, rejected = (side.ratios if reference else side.logps for side in sides)
    return beta * chosen, beta * rejected
