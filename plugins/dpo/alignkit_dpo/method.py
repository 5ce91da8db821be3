"""The dpo method: settings and hooks."""

from __future__ import annotations

from typing import Literal

from alignkit import Batch, LossOutput, LossTerm, Method, Policy, Settings, hookimpl, nll_term, preference_metrics
from pydantic import Field, model_validator

from alignkit_dpo.losses import dpo_loss


class DPOSettings(Settings):
    """Settings of dpo."""

    beta: float = Field(0.1, gt=0, description="strength of the implicit KL penalty to the reference (tau of ipo)")
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = Field(
        "sigmoid", description="loss as a function of the log-ratio margin"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="assumed share of flipped labels, for sigmoid (cDPO) and robust"
    )
    ratio: Literal["sum", "mean"] | None = Field(
        None,
        description="log-ratio of a completion: sum or mean (length-normalised) over its tokens; "
        "default: mean for ipo, as in TRL and HALOs, else sum",
    )
    nll_weight: float = Field(
        0.0, ge=0, alias="alpha", description="weight of the NLL of the chosen completion, added to the loss (RPO)"
    )

    @model_validator(mode="after")
    def _check_smoothing(self) -> DPOSettings:
        if self.label_smoothing and self.loss in ("ipo", "hinge"):
            raise ValueError(f"label_smoothing does not apply to the {self.loss} loss")
        return self

    @property
    def per_token(self) -> bool:
        """Whether log-ratios are means over tokens."""
        return (self.ratio or ("mean" if self.loss == "ipo" else "sum")) == "mean"


class DPO(Method[DPOSettings]):
    """Direct preference optimisation; the reference is the policy at step 0."""

    name = "dpo"
    paper = "Rafailov et al. 2023, Direct Preference Optimization, https://arxiv.org/abs/2305.18290"
    rows = "preference"
    needs = frozenset({"reference"})
    settings_type = DPOSettings
    defaults = {"train.learning_rate": 1e-6}
    lora_defaults = {"train.learning_rate": 1e-5}

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compute :func:`dpo_loss` over the log-ratios of policy to reference."""
        s = self.settings
        scores = policy.score(batch.examples)
        reference = batch.reference(scores)
        ratios = scores.sums() - reference.sums()
        chosen, rejected = scores.split(ratios / scores.lengths if s.per_token else ratios)  # (G,) each
        losses = dpo_loss(chosen, rejected, beta=s.beta, kind=s.loss, label_smoothing=s.label_smoothing)
        terms = [LossTerm(s.loss, losses.sum(), per="rows")]
        if s.nll_weight:
            terms.append(nll_term(scores, batch, weight=s.nll_weight))
        metrics = preference_metrics(s.beta * chosen, s.beta * rejected, *scores.split(scores.means()))
        return LossOutput(terms, metrics)

    def conventions(self) -> dict[str, object]:
        """Add the effective reduction of the log-ratio."""
        return super().conventions() | {"ratio": "mean" if self.settings.per_token else "sum"}
