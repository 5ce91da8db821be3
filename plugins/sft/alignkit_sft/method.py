"""The sft method: settings and hooks."""

from __future__ import annotations

from typing import Literal

from alignkit import Batch, LossOutput, Method, Metric, Policy, Settings, hookimpl, nll_term
from pydantic import Field


class SFTSettings(Settings):
    """Settings of sft."""

    nll_scope: Literal["completion", "full"] = Field(
        "completion", description="tokens of the loss: the completion only, or prompt and completion"
    )
    nll_reduction: Literal["token", "sequence"] = Field(
        "token", description="mean over all tokens of the step, or mean over rows of each row's mean"
    )


class SFT(Method[SFTSettings]):
    """Supervised fine-tuning on completions (the chosen ones of preference rows)."""

    name = "sft"
    paper = "Ouyang et al. 2022, Training language models to follow instructions, https://arxiv.org/abs/2203.02155"
    rows = "completion"
    settings_type = SFTSettings
    defaults = {"train.learning_rate": 2e-5}
    lora_defaults = {"train.learning_rate": 2e-4}

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compute L = -sum_t log p(y_t | x, y_<t) / tokens, or the mean over rows of each row's mean."""
        s = self.settings
        scores = policy.score(batch.examples, prompt=s.nll_scope == "full")
        term = nll_term(scores, batch, scope=s.nll_scope, reduction=s.nll_reduction)
        return LossOutput([term], {"logps/chosen": Metric(scores.means().detach().sum(), "rows")})
