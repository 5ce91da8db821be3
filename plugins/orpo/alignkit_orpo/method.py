"""The orpo method: settings and hooks."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from alignkit import (
    Batch,
    LossOutput,
    LossTerm,
    Method,
    Metric,
    Policy,
    Settings,
    hookimpl,
    nll_term,
    preference_metrics,
)
from pydantic import Field, model_validator

from alignkit_orpo.losses import log_odds_ratio, odds_ratio_loss


class NLL(NamedTuple):
    """Scope and reduction of the negative log-likelihood."""

    scope: Literal["completion", "full"]
    reduction: Literal["token", "sequence"]


# The implementations of the paper differ in this.
CONVENTIONS = {
    "paper": NLL("completion", "token"),
    "trl": NLL("full", "token"),
    "llamafactory": NLL("completion", "sequence"),
}


class ORPOSettings(Settings):
    """Settings of orpo."""

    lam: float = Field(
        0.1,
        ge=0,
        alias="lambda",
        description="weight of the odds-ratio term (called beta or alpha elsewhere)",
        json_schema_extra={"elsewhere": ["beta", "alpha", "orpo_alpha", "pref_beta"]},
    )
    lambda_schedule: Literal["constant", "linear", "cosine", "warmup"] = Field(
        "constant", description="course of lambda over training: constant, or a rise from lambda_start to lambda"
    )
    lambda_start: float = Field(0.0, ge=0, description="lambda at the start of a schedule")
    lambda_warmup: float = Field(0.1, gt=0, le=1, description="share of training over which the warmup schedule rises")
    weighting: Literal["additive", "convex"] = Field(
        "additive", description="NLL + lambda OR, or (1 - lambda) NLL + lambda OR"
    )
    convention: Literal["paper", "trl", "llamafactory"] = Field(
        "paper", description="defaults of nll_scope and nll_reduction, as in this implementation"
    )
    nll_scope: Literal["completion", "full"] | None = Field(
        None,
        description="tokens of the NLL: the chosen completion only, or prompt and completion (default: by convention)",
    )
    nll_reduction: Literal["token", "sequence"] | None = Field(
        None, description="mean over all tokens, or mean over rows of each row's mean (default: by convention)"
    )

    @model_validator(mode="after")
    def _convex_weights(self) -> ORPOSettings:
        if self.weighting == "convex" and max(self.lam, self.lambda_start) > 1:
            raise ValueError("lambda must be at most 1 with weighting: convex")
        return self

    @model_validator(mode="after")
    def _schedule_settings(self) -> ORPOSettings:
        if self.lambda_start and self.lambda_schedule == "constant":
            raise ValueError(
                "lambda_start has no effect with lambda_schedule: constant (linear, cosine and warmup use it)"
            )
        if self.lambda_warmup != 0.1 and self.lambda_schedule != "warmup":
            raise ValueError("lambda_warmup has no effect without lambda_schedule: warmup")
        return self

    @property
    def nll(self) -> NLL:
        """Effective scope and reduction of the NLL."""
        preset = CONVENTIONS[self.convention]
        return NLL(self.nll_scope or preset.scope, self.nll_reduction or preset.reduction)

    def weight(self, progress: float) -> float:
        """Return lambda at ``progress`` (0 to 1) of training."""
        done = min(progress / self.lambda_warmup, 1.0) if self.lambda_schedule == "warmup" else progress
        match self.lambda_schedule:
            case "constant":
                return self.lam
            case "cosine":
                done = (1 - math.cos(math.pi * done)) / 2
        return self.lambda_start + (self.lam - self.lambda_start) * done


class ORPO(Method[ORPOSettings]):
    """NLL of the chosen completion plus lambda times the odds-ratio loss; no reference model."""

    name = "orpo"
    paper = "Hong et al. 2024, ORPO: Monolithic Preference Optimization without Reference Model, https://arxiv.org/abs/2403.07691"
    rows = "preference"
    settings_type = ORPOSettings
    defaults = {"train.learning_rate": 8e-6}
    lora_defaults = {"train.learning_rate": 8e-5}

    @hookimpl
    def align_prepare_batch(self, batch: Batch, progress: float) -> Batch | None:
        """While lambda is 0, exclude rejected completions from the gradient pass (0.0 times a gradient still changes bits)."""
        if self.settings.weight(progress) > 0:
            return None
        return batch.narrow(0).with_column("rejected", [e.narrow(1) for e in batch.examples])

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch, progress: float) -> LossOutput:
        """Compute L = L_SFT + lambda L_OR (arXiv:2403.07691, eq. 6)."""
        s, lam = self.settings, self.settings.weight(progress)
        scores = policy.score(batch.examples, prompt=s.nll.scope == "full")
        if "rejected" in batch.columns:
            chosen, rejected = scores.means(), policy.score(batch.columns["rejected"], grad=False).means()
        else:
            chosen, rejected = scores.split(scores.means())  # (G,) each
        nll_weight = 1 - lam if s.weighting == "convex" else 1.0
        nll = nll_term(scores, batch, scope=s.nll.scope, reduction=s.nll.reduction, weight=nll_weight)
        terms = [nll, LossTerm("odds_ratio", odds_ratio_loss(chosen, rejected).sum(), "rows", lam)]
        metrics = preference_metrics(lam * chosen, lam * rejected, chosen, rejected)
        credit = ((chosen - rejected).detach().sign() + 1) / 2  # at lambda 0 all rewards are 0
        metrics["rewards/accuracies"] = Metric(credit.sum(), "rows")
        metrics["log_odds_chosen"] = Metric(log_odds_ratio(chosen, rejected).detach().sum(), "rows")
        metrics["lambda"] = Metric(chosen.new_full((), lam * len(batch)), "rows")
        return LossOutput(terms, metrics)

    def conventions(self) -> dict[str, Any]:
        """Add the effective scope and reduction of the NLL."""
        scope, reduction = self.settings.nll
        return super().conventions() | {"nll_scope": scope, "nll_reduction": reduction}
