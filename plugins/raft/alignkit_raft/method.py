"""The raft method: settings and hooks."""

from __future__ import annotations

from dataclasses import replace

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
    rollout_metrics,
)
from alignkit_onpolicy import GROUP_DEMO, alike, best_and_worst
from pydantic import Field


class RAFTSettings(OnPolicySettings):
    """Settings of raft."""

    group: int = Field(
        8, ge=2, alias="num_generations", description="answers sampled per prompt, the best of which is kept"
    )


class RAFT(Method[RAFTSettings]):
    """Supervised fine-tuning on the best of several answers that the policy samples; no critic and no reference."""

    name = "raft"
    paper = "Dong et al. 2023, RAFT: Reward rAnked FineTuning, https://arxiv.org/abs/2304.06767"
    rows = "prompt"
    needs = frozenset({"reward"})
    settings_type = RAFTSettings
    defaults = {"train.learning_rate": 2e-5, "train.lr_scheduler_type": "constant", "train.num_train_epochs": 1}
    lora_defaults = {"train.learning_rate": 2e-4}
    demo = GROUP_DEMO

    @property
    def reuse(self) -> Reuse:
        return self.settings.reuse

    @hookimpl
    def align_prepare_batch(self, batch: Batch, rollouts: Rollouts) -> Batch:
        """Sample several answers per prompt and note the one with the highest reward (algorithm 1)."""
        batch = rollouts.sample(batch, self.settings.group)
        best = [first for first, _ in best_and_worst(batch)]
        tokens = [len(example.completions[k]) for example, k in zip(batch.examples, best, strict=True)]
        batch = replace(batch, row_counts={**batch.row_counts, "best_tokens": tokens})
        return batch.with_column("best", best).with_column("alike", [float(same) for same in alike(batch)])

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compute the negative log-likelihood of the best answers, a mean over their tokens (arXiv:2304.06767, section 3.2)."""
        best = batch.columns["best"]
        rows = [example.narrow(k) for example, k in zip(batch.examples, best, strict=True)]
        scores = policy.score(rows, temperature=self.settings.temperature)
        metrics = rollout_metrics(batch, scores.logps)
        rewards = sum(rewards[k] for rewards, k in zip(batch.columns["reward"], best, strict=True))
        metrics["reward_best"] = Metric(scores.logps.new_full((), rewards), "rows")
        metrics["groups_alike"] = Metric(scores.logps.new_full((), sum(batch.columns["alike"])), "rows")
        return LossOutput([LossTerm("nll", -scores.logps.sum(), "best_tokens")], metrics)
