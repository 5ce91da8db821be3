"""The grpo method: settings and hooks."""

from __future__ import annotations

from typing import Literal

import torch
from alignkit import (
    Batch,
    LossOutput,
    LossTerm,
    Method,
    Metric,
    OnPolicySettings,
    Policy,
    Reuse,
    Rollouts,
    hookimpl,
    moments,
    rollout_metrics,
)
from pydantic import Field, model_validator

from alignkit_grpo.losses import clipped_loss, group_advantages, kl_k3


class GRPOSettings(OnPolicySettings):
    """Settings of grpo."""

    group: int = Field(8, ge=2, alias="num_generations", description="answers sampled per prompt")
    baseline: Literal["mean", "leave_one_out"] = Field(
        "mean", description="baseline of an answer's reward: mean of its group (GRPO), or of the other answers (RLOO)"
    )
    scale: Literal["group", "batch", "none"] = Field(
        "group", description="divide advantages by the standard deviation of the group or the batch, or not at all"
    )
    kl_coef: float = Field(0.0, ge=0, alias="beta", description="weight of the KL to the reference")
    kl_in: Literal["loss", "reward"] = Field(
        "loss", description="use the KL as a term of the loss (GRPO), or subtract it from the reward (RLOO)"
    )
    clip: float = Field(0.2, gt=0, description="lower clip range of a token's probability ratio: 1 - clip")
    clip_high: float | None = Field(None, gt=0, description="upper clip range: 1 + clip_high (default: clip)")
    reduction: Literal["token", "sequence", "constant"] = Field(
        "token",
        description="mean over all tokens (DAPO), mean over answers of each answer's mean (GRPO), or sum over tokens / max_new_tokens (Dr. GRPO)",
    )

    @model_validator(mode="after")
    def _used(self) -> GRPOSettings:
        if self.kl_in != "loss" and not self.kl_coef:
            raise ValueError("kl_in has no effect without beta")
        if (self.clip != 0.2 or self.clip_high is not None) and self.reuse.steps == 1:
            raise ValueError(
                "clip and clip_high have no effect where every rollout is trained on once: set epochs or minibatches"
            )
        return self


class GRPO(Method[GRPOSettings]):
    """Policy gradient whose baseline is the reward of other answers to the same prompt; no critic."""

    name = "grpo"
    paper = "Shao et al. 2024, DeepSeekMath, https://arxiv.org/abs/2402.03300"
    rows = "prompt"
    needs = frozenset({"reference", "reward"})
    settings_type = GRPOSettings
    defaults = {"train.learning_rate": 1e-6, "train.lr_scheduler_type": "constant", "train.num_train_epochs": 1}
    lora_defaults = {"train.learning_rate": 1e-5}
    demo = {
        "method.rewards": "alignkit.demo.world:quality",
        "method.max_new_tokens": 32,
        "method.kl_coef": 0.02,
        "train.learning_rate": 1e-3,
        "train.per_device_train_batch_size": 16,
        "train.max_steps": 80,
        "train.lr_scheduler_type": "constant",
        "eval.suites": ["generate", "prefs", "perplexity"],
    }

    @property
    def reuse(self) -> Reuse:
        return self.settings.reuse

    @hookimpl
    def align_prepare_batch(self, batch: Batch, rollouts: Rollouts) -> Batch:
        """Sample several answers per prompt and compute their advantages within each group."""
        s = self.settings
        batch = rollouts.sample(batch, s.group)
        old = rollouts.score(batch, entropy=True)
        assert old.entropy is not None
        tokens = {"logps": old.logps, "entropy": old.entropy}
        rewards = batch.answers("reward", old.logps)  # (S,)
        if s.kl_coef:
            reference = rollouts.score(batch, reference=True)
            tokens["reference"] = reference.logps
            if s.kl_in == "reward":
                rewards = rewards - s.kl_coef * (old.sums() - reference.sums())
        groups = rewards.view(len(batch), s.group)
        spread = moments(rewards, rollouts)[1] ** 0.5 if s.scale == "batch" else 1.0
        advantages = group_advantages(groups, baseline=s.baseline, scale=s.scale, spread=spread)
        tokens["advantages"] = advantages.flatten()[old.sequence]
        tokens["lengths"] = old.lengths[old.sequence].float()
        alike = (groups == groups[:, :1]).all(1)
        return batch.with_tokens(**tokens).with_column("alike", alike.float().tolist())

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compute the clipped surrogate plus kl_coef times the KL to the reference (arXiv:2402.03300, eq. 3)."""
        s = self.settings
        scores = policy.score(batch.examples, temperature=s.temperature)
        log_ratios = scores.logps - batch.tokens("logps", scores.logps)
        advantages = batch.tokens("advantages", scores.logps)
        loss = clipped_loss(log_ratios, advantages, low=s.clip, high=s.clip_high or s.clip)
        terms = [self._term("policy", loss, batch)]
        change = log_ratios.detach()
        tokens = {
            "approx_kl": change.expm1() - change,
            "clip_fraction": (change.exp() < 1 - s.clip) | (change.exp() > 1 + (s.clip_high or s.clip)),
            "entropy": batch.tokens("entropy", scores.logps),
        }
        if s.kl_coef:
            kl = kl_k3(scores.logps, batch.tokens("reference", scores.logps))
            terms += [self._term("kl", kl, batch, s.kl_coef)] if s.kl_in == "loss" else []
            tokens["kl"] = kl.detach()
        metrics = rollout_metrics(batch, scores.logps)
        metrics |= {name: Metric(value.float().sum(), "completion_tokens") for name, value in tokens.items()}
        metrics["groups_alike"] = Metric(scores.logps.new_full((), sum(batch.columns["alike"])), "rows")
        return LossOutput(terms, metrics)

    def _term(self, name: str, values: torch.Tensor, batch: Batch, weight: float = 1.0) -> LossTerm:
        """Reduce one number per token as configured."""
        match self.settings.reduction:
            case "token":
                return LossTerm(name, values.sum(), "completion_tokens", weight)
            case "sequence":
                return LossTerm(name, (values / batch.tokens("lengths", values)).sum(), "completions", weight)
        return LossTerm(name, values.sum() / self.settings.max_new_tokens, "completions", weight)
