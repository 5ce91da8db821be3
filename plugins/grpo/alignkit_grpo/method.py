"""The grpo method: its hooks."""

from __future__ import annotations

from dataclasses import replace

import torch
from alignkit import Batch, LossOutput, LossTerm, Method, Metric, Policy, Reuse, Rollouts, hookimpl, moments
from alignkit_onpolicy import (
    GROUP_DEMO,
    alike,
    cispo_loss,
    clipped_loss,
    corrected,
    correction_of,
    importance_weights,
    informative,
    kl_estimate,
    policy_metrics,
)

from alignkit_grpo.advantages import EPSILON, group_advantages, later_sums, normalised_sum
from alignkit_grpo.settings import GRPOSettings
from alignkit_grpo.variants import VARIANTS


class GRPO(Method[GRPOSettings]):
    """Policy gradient whose baseline is the reward of other answers to the same prompt; no critic."""

    name = "grpo"
    paper = "Shao et al. 2024, DeepSeekMath, https://arxiv.org/abs/2402.03300"
    rows = "prompt"
    needs = frozenset({"reference", "reward"})
    settings_type = GRPOSettings
    defaults = {"train.learning_rate": 1e-6, "train.lr_scheduler_type": "constant", "train.num_train_epochs": 1}
    lora_defaults = {"train.learning_rate": 1e-5}
    variants = {name: {f"method.{key}": v for key, v in values.items()} for name, values in VARIANTS.items()}
    demo = {**GROUP_DEMO, "method.kl_coef": 0.02}

    @property
    def reuse(self) -> Reuse:
        return self.settings.reuse

    @hookimpl
    def align_prepare_batch(self, batch: Batch, rollouts: Rollouts) -> Batch:
        """Sample several answers per prompt and compute their advantages within each group."""
        s = self.settings
        batch = informative(batch, rollouts, s.group, rounds=s.refill_rounds)
        lengths = torch.tensor([len(c) for example in batch.examples for c in example.completions], dtype=torch.long)
        kl = torch.zeros(int(lengths.sum()))  # for the reward
        tokens = {"reference": rollouts.score(batch, reference=True).logps} if s.kl_coef else {}
        if not self._detaches(batch):
            old = rollouts.score(batch, entropy=True)
            assert old.entropy is not None
            tokens |= {"logps": old.logps, "entropy": old.entropy, **correction_of(batch, old, s)}
            if s.kl_coef:
                kl = kl_estimate(old.logps - tokens["reference"], s.kl_estimator or "k1")
        tokens["advantages"] = self._advantages(batch, lengths, s.kl_coef * kl, rollouts)
        sequence = torch.repeat_interleave(lengths)
        tokens["lengths"] = lengths[sequence].float()
        if s.mask_truncated:
            ended = batch.answers("ended", kl)
            tokens["trained"] = ended[sequence]
            trained = lengths * ended.long()
            counts = {**batch.row_counts, "trained_tokens": trained.view(len(batch), -1).sum(1).tolist()}
            batch = replace(batch, row_counts=counts)
        return batch.with_tokens(**tokens).with_column("alike", [float(same) for same in alike(batch)])

    def _detaches(self, batch: Batch) -> bool:
        """Return whether the training pass itself has the log-probabilities of the policy that sampled.

        It does where the rollout serves one step, of the weights that sampled; they are not needed before, unless the KL is
        part of the reward or another sampler's log-probabilities are compared.
        """
        s = self.settings
        in_reward = s.kl_coef and s.kl_in != "loss"
        return s.reuse.steps == 1 and s.sampler == "model" and "sampler" not in batch.columns and not in_reward

    def _advantages(self, batch: Batch, lengths: torch.Tensor, kl: torch.Tensor, rollouts: Rollouts) -> torch.Tensor:
        """Return the advantage of every token, ``[N]``, given the answers' lengths ``[S]`` and the weighted KL ``[N]``."""
        s, sequence = self.settings, torch.repeat_interleave(lengths)
        rewards = self._rewards(batch, kl)  # (G, K)
        if s.kl_in == "reward":
            rewards = rewards - kl.new_zeros(rewards.numel()).index_add(0, sequence, kl).view_as(rewards)
        spread = _normal(rewards, rollouts)[1] if s.scale == "batch" else 1.0
        greedy = None
        if s.baseline == "greedy":
            greedy = rollouts.sample(batch, greedy=True).answers("reward", kl)
        advantages = group_advantages(rewards, baseline=s.baseline, scale=s.scale, spread=spread, greedy=greedy)
        if s.scale == "whiten" and s.kl_in != "tokens":
            mean, spread = _normal(advantages, rollouts)
            advantages = (advantages - mean) / (spread + EPSILON)
        found = advantages.flatten()[sequence]
        if s.kl_in == "tokens":
            found = found - later_sums(kl, lengths)
            if s.scale == "whiten":
                mean, spread = _normal(found, rollouts)
                found = (found - mean) / (spread + EPSILON)
        return found

    def _rewards(self, batch: Batch, like: torch.Tensor) -> torch.Tensor:
        """Return the rewards, ``[G, K]``: summed, or each of them normalised before (:func:`normalised_sum`)."""
        total = batch.answers("reward", like).view(len(batch), self.settings.group)
        names = [name for name in batch.columns if name.startswith("reward/")]
        if not self.settings.per_reward:
            return total
        weights = like.new_tensor([spec.weight for spec in self.settings.rewards])
        parts = torch.stack([batch.answers(name, like).view_as(total) for name in names])  # (R, G, K)
        penalties = total - (weights[:, None, None] * parts).nansum(0)  # e.g. of length
        return normalised_sum(torch.cat([parts, penalties[None]]), torch.cat([weights, weights.new_ones(1)]))

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compute the surrogate plus kl_coef times the KL to the reference (arXiv:2402.03300, eq. 3)."""
        s = self.settings
        detached = "logps" not in batch.columns  # the ratio is then exactly 1
        scores = policy.score(batch.examples, temperature=s.temperature, entropy="grad" if s.entropy_coef else detached)
        log_ratios = scores.logps - (scores.logps.detach() if detached else batch.tokens("logps", scores.logps))
        advantages = batch.tokens("advantages", scores.logps)
        weights = importance_weights(log_ratios, scores.sequence, scores.lengths, level=s.importance)
        if s.surrogate == "cispo":
            loss = cispo_loss(weights, advantages, scores.logps, **s.bounds)
        else:
            loss = clipped_loss(weights, advantages, **s.bounds)
        terms = [self._term("policy", corrected(loss, batch), batch)]
        tokens = {"entropy": scores.entropy} if detached and scores.entropy is not None else {}
        if s.kl_coef:
            kl = scores.logps - batch.tokens("reference", scores.logps)
            tokens["kl"] = kl_estimate(kl, "k3")
            if s.kl_in == "loss":
                terms.append(self._term("kl", kl_estimate(kl, s.kl_estimator or "k3"), batch, s.kl_coef))
        if s.entropy_coef and scores.entropy is not None:
            terms.append(self._mean("entropy", -scores.entropy, batch, s.entropy_coef))
        metrics = policy_metrics(batch, weights, tokens, **s.bounds)
        if s.group > 1:
            metrics["groups_alike"] = Metric(scores.logps.new_full((), sum(batch.columns["alike"])), "rows")
        return LossOutput(terms, metrics)

    def _term(self, name: str, values: torch.Tensor, batch: Batch, weight: float = 1.0) -> LossTerm:
        """Reduce one number per token as configured."""
        match self.settings.reduction:
            case "token":
                return self._mean(name, values, batch, weight)
            case "sequence":
                values = values / batch.tokens("lengths", values)
            case "constant":
                values = values / self.settings.max_new_tokens
        return LossTerm(name, self._trained(values, batch).sum(), "completions", weight)

    def _mean(self, name: str, values: torch.Tensor, batch: Batch, weight: float) -> LossTerm:
        """Return the mean over the tokens that are trained on."""
        per = "trained_tokens" if self.settings.mask_truncated else "completion_tokens"
        return LossTerm(name, self._trained(values, batch).sum(), per, weight)

    def _trained(self, values: torch.Tensor, batch: Batch) -> torch.Tensor:
        return values * batch.tokens("trained", values) if self.settings.mask_truncated else values


def _normal(values: torch.Tensor, rollouts: Rollouts) -> tuple[float, float]:
    """Return the mean and the standard deviation (of a sample) of the values of all processes."""
    mean, variance = moments(values.flatten(), rollouts)
    count = max(rollouts.total(values.numel())[0], 2.0)
    return mean, float((variance * count / (count - 1)) ** 0.5)
