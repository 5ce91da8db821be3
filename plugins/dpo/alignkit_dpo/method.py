"""The dpo method: settings and hooks."""

from __future__ import annotations

from typing import Literal

from alignkit import Batch, LossOutput, LossTerm, Method, Policy, Settings, hookimpl, nll_term, preference_metrics
from pydantic import Field, model_validator

from alignkit_dpo.losses import dpo_loss


class DPOSettings(Settings):
    """Settings of dpo."""

    beta: float = Field(0.1, gt=0, description="strength of the pull towards the reference (ipo: its tau)")
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = Field("sigmoid", description="loss over the log-ratio margin")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="assumed share of flipped labels (sigmoid: cDPO; robust)"
    )
    ratio: Literal["sum", "mean"] | None = Field(
        None,
        description="log-ratio of a completion summed over its tokens, or their mean (length-normalised); "
        "default: mean for ipo as in TRL and HALOs, sum for the others",
    )
    nll_weight: float = Field(0.0, ge=0, alias="alpha", description="weight of the chosen answer's NLL (RPO)")

    @model_validator(mode="after")
    def _smoothing_has_a_use(self) -> DPOSettings:
        if self.label_smoothing and self.loss in ("ipo", "hinge"):
            raise ValueError(f"label_smoothing has no meaning for the {self.loss} loss")
        return self

    @property
    def per_token(self) -> bool:
        """Whether log-ratios are means over tokens."""
        return (self.ratio or ("mean" if self.loss == "ipo" else "sum")) == "mean"


class DPO(Method[DPOSettings]):
    """Direct preference optimisation against the policy as it was at step 0."""

    name = "dpo"
    paper = "Rafailov et al. 2023, Direct Preference Optimization, https://arxiv.org/abs/2305.18290"
    rows = "preference"
    needs = frozenset({"reference"})
    settings_type = DPOSettings
    defaults = {"train.learning_rate": 1e-6}

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compare how far chosen and rejected moved away from the reference (see :func:`dpo_loss`)."""
        s = self.settings
        scores = policy.score(batch.examples)
        reference = batch.reference(scores)
        moved = scores.sums() - reference.sums()
        chosen, rejected = scores.split(moved / scores.lengths if s.per_token else moved)  # (G,) each
        losses = dpo_loss(chosen, rejected, beta=s.beta, kind=s.loss, label_smoothing=s.label_smoothing)
        terms = [LossTerm(s.loss, losses.sum(), per="rows")]
        if s.nll_weight:
            terms.append(nll_term(scores, batch, weight=s.nll_weight))
        metrics = preference_metrics(s.beta * chosen, s.beta * rejected, *scores.split(scores.means()))
        return LossOutput(terms, metrics)

    def conventions(self) -> dict[str, object]:
        """Record the reduction that is in force, not only what was asked for."""
        return super().conventions() | {"ratio": "mean" if self.settings.per_token else "sum"}
