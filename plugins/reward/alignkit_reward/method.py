"""The reward method: settings and hooks."""

from __future__ import annotations

import math

import torch
from alignkit import (
    Batch,
    Example,
    LoadedModel,
    LossOutput,
    LossTerm,
    Method,
    Metric,
    Policy,
    RunConfig,
    Settings,
    build_classifier,
    hookimpl,
)
from alignkit.errors import DataError
from pydantic import Field

from alignkit_reward.losses import centering_loss, reward_loss


class RewardSettings(Settings):
    """Settings of reward."""

    margin: str | None = Field(None, description="data column with the margin by which the chosen completion is better")
    center: float = Field(
        0.0, ge=0, description="weight of the squared sum of a pair's rewards, which keeps rewards centred at zero"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="assumed share of flipped labels")


class RewardModelling(Method[RewardSettings]):
    """Reward model trained on preference pairs: a classifier with one output, on a causal language model or an encoder."""

    name = "reward"
    paper = "Stiennon et al. 2020, Learning to summarize from human feedback, https://arxiv.org/abs/2009.01325"
    rows = "preference"
    settings_type = RewardSettings
    unused = {
        "model.scorer": "a reward model is called directly",
        "model.head": "a reward model has no probabilities of tokens",
    }
    defaults = {"train.learning_rate": 1e-5, "train.num_train_epochs": 1, "eval.suites": ["prefs"]}
    lora_defaults = {"train.learning_rate": 1e-4}
    demo = {"eval.suites": ["prefs"]}

    @hookimpl
    def align_build_model(self, config: RunConfig) -> LoadedModel:
        """Load the start model as a classifier; a language model or encoder gets a new output layer."""
        return build_classifier(config.model, seed=config.run.seed)

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compute :func:`reward_loss` over the rewards of both completions."""
        s = self.settings
        scores = policy.score(batch.examples)
        chosen, rejected = scores.split(scores.logps)  # (G,) each
        margins: torch.Tensor | float = 0.0
        if s.margin is not None:
            batch = batch.with_column("margin", [[_margin(example, s.margin)] for example in batch.examples])
            margins = batch.answers("margin", chosen)  # (G,)
        losses = reward_loss(chosen, rejected, margins=margins, label_smoothing=s.label_smoothing)
        terms = [LossTerm("bradley_terry", losses.sum(), "rows")]
        if s.center:
            terms.append(LossTerm("center", centering_loss(chosen, rejected).sum(), "rows", s.center))
        values = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": ((chosen - rejected).sign() + 1) / 2,
        }
        return LossOutput(terms, {name: Metric(value.detach().sum(), "rows") for name, value in values.items()})


def _margin(example: Example, column: str) -> float:
    value = example.fields.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"row {example.id}: the margin column {column!r} is {value!r}, which is not a finite number")
    return float(value)
