"""The ppo method: settings and hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from alignkit import (
    Batch,
    LossOutput,
    LossTerm,
    Method,
    Policy,
    Reuse,
    Rollouts,
    hookimpl,
    moments,
    whiten,
)
from alignkit_onpolicy import PolicyGradientSettings, corrected, correction_of, kl_estimate, policy_metrics
from pydantic import Field, model_validator

from alignkit_ppo.losses import clipped_policy_loss, clipped_value_loss, explained_variance, gae


class PPOSettings(PolicyGradientSettings):
    """Settings of ppo."""

    epochs: int = Field(4, ge=1, description="passes over each rollout")
    kl_coef: float = Field(0.05, ge=0, alias="beta", description="weight of the per-token KL penalty to the reference")
    kl_estimator: Literal["k1", "k3"] = Field(
        "k1",
        description="estimator of the KL penalty from the log-ratio r: k1 = r, k3 = exp(-r) - 1 + r (never negative)",
    )
    kl_target: float | None = Field(
        None,
        gt=0,
        description="target KL to the reference in nats per answer, which adapts kl_coef (default: kl_coef is fixed)",
    )
    kl_horizon: float = Field(10_000, gt=0, description="number of answers over which an adaptive kl_coef changes")
    clip: float = Field(0.2, gt=0, description="clip range of a token's probability ratio: 1 - clip to 1 + clip")
    value_clip: float = Field(0.2, gt=0, description="clip range of a value around its value in the rollout")
    value_coef: float = Field(0.1, ge=0, description="weight of the value loss")
    gamma: float = Field(1.0, ge=0, le=1, description="discount factor of rewards")
    lam: float = Field(0.95, ge=0, le=1, alias="lambda", description="lambda of generalised advantage estimation (GAE)")
    whiten_rewards: bool = Field(False, description="scale the token rewards of a rollout to variance 1")
    whiten_advantages: bool = Field(True, description="normalise the advantages of a rollout to mean 0 and variance 1")
    critic: Literal["shared", "separate"] = Field(
        "shared", description="value head on the policy's hidden states, or on a separate trunk"
    )

    @model_validator(mode="after")
    def _horizon_of_a_target(self) -> PPOSettings:
        if self.kl_horizon != 10_000 and self.kl_target is None:
            raise ValueError("kl_horizon has no effect without kl_target")
        return self


class PPO(Method[PPOSettings]):
    """Clipped policy gradient with a learned critic and a KL penalty to the policy at step 0."""

    name = "ppo"
    paper = "Schulman et al. 2017, Proximal Policy Optimization Algorithms, https://arxiv.org/abs/1707.06347"
    rows = "prompt"
    needs = frozenset({"reference", "value_head", "reward"})
    settings_type = PPOSettings
    defaults = {"train.learning_rate": 3e-6, "train.lr_scheduler_type": "constant", "train.num_train_epochs": 1}
    lora_defaults = {"train.learning_rate": 3e-5}
    demo = {
        "method.rewards": "alignkit.demo.world:quality",
        "method.max_new_tokens": 32,
        "method.minibatches": 2,
        "method.epochs": 2,
        "method.value_coef": 0.5,
        "train.learning_rate": 7e-4,
        "train.per_device_train_batch_size": 64,
        "train.max_steps": 240,
        "train.lr_scheduler_type": "constant",
        "eval.suites": ["generate", "prefs", "perplexity"],
    }

    def __init__(self, settings: PPOSettings) -> None:
        super().__init__(settings)
        self.kl_coef = settings.kl_coef

    @property
    def reuse(self) -> Reuse:
        return self.settings.reuse

    def state(self) -> dict[str, float]:
        return {"kl_coef": self.kl_coef}

    def load_state(self, state: Mapping[str, float]) -> None:
        self.kl_coef = state.get("kl_coef", self.kl_coef)

    @hookimpl
    def align_prepare_batch(self, batch: Batch, rollouts: Rollouts) -> Batch:
        """Sample answers and compute each token's advantage and return from rewards, KL penalty and values."""
        s = self.settings
        batch = rollouts.sample(batch)
        old = rollouts.score(batch, values=True, entropy=True)
        assert old.values is not None
        assert old.entropy is not None
        log_ratios = old.logps - rollouts.score(batch, reference=True).logps  # (N,)
        rewards = -self.kl_coef * kl_estimate(log_ratios, s.kl_estimator)
        last = old.lengths.cumsum(0) - 1
        rewards[last] += batch.answers("reward", rewards)  # the reward of the answer is given at its last token
        if s.whiten_rewards:
            rewards = whiten(rewards, rollouts, shift_mean=False)
        advantages = gae(rewards, old.values, old.lengths, gamma=s.gamma, lam=s.lam)
        returns = advantages + old.values
        if s.whiten_advantages:
            advantages = whiten(advantages, rollouts)
        kl = old.logps.new_zeros(len(old.lengths)).index_add(0, old.sequence, log_ratios)  # (S,)
        unexplained, variance = (moments(x, rollouts)[1] for x in (returns - old.values, returns))
        shared = {"kl_coef": self.kl_coef, "explained_variance": explained_variance(unexplained, variance)}
        self._adapt(kl, rollouts)
        tokens = {"logps": old.logps, "values": old.values, "entropy": old.entropy, **correction_of(batch, old, s)}
        batch = batch.with_tokens(**tokens, advantages=advantages, returns=returns)
        return batch.with_answers(kl=kl).with_shared(**shared)

    def _adapt(self, kl: torch.Tensor, rollouts: Rollouts) -> None:
        """Adapt the coefficient to the target KL (Ziegler et al. 2019, arXiv:1909.08593, section 2.2)."""
        if self.settings.kl_target is None or not rollouts.training:
            return
        total, answers = rollouts.total(kl.sum(), len(kl))
        error = (total / max(answers, 1)) / self.settings.kl_target - 1
        self.kl_coef *= 1 + min(max(error, -0.2), 0.2) * answers / self.settings.kl_horizon

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compute L = L_CLIP + value_coef L_VF - entropy_coef H (arXiv:1707.06347, eq. 9), a mean over the tokens of the step."""
        s = self.settings
        scores = policy.score(
            batch.examples, values=True, temperature=s.temperature, entropy="grad" if s.entropy_coef else False
        )
        assert scores.values is not None
        old, advantages, returns, old_values = (
            batch.tokens(name, scores.logps) for name in ("logps", "advantages", "returns", "values")
        )
        log_ratios = scores.logps - old
        policy_loss = clipped_policy_loss(log_ratios, advantages, clip=s.clip)
        value_loss = clipped_value_loss(scores.values, old_values, returns, clip=s.value_clip)
        terms = [
            LossTerm("policy", corrected(policy_loss, batch).sum(), "completion_tokens"),
            LossTerm("value", value_loss.sum(), "completion_tokens", s.value_coef),
        ]
        if scores.entropy is not None:
            terms.append(LossTerm("entropy", -scores.entropy.sum(), "completion_tokens", s.entropy_coef))
        return LossOutput(terms, policy_metrics(batch, log_ratios, {"value": scores.values}, low=s.clip, high=s.clip))
