"""The online-dpo method: settings and hooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from alignkit import (
    Batch,
    Loss,
    LossOutput,
    Metric,
    OnPolicySettings,
    Policy,
    Reuse,
    Rollouts,
    hookimpl,
    rollout_metrics,
)
from alignkit_losses import LossMethod, LossSettings
from alignkit_onpolicy import GROUP_DEMO, best_and_worst, informative
from pydantic import Field


class OnlineDPOSettings(LossSettings, OnPolicySettings):
    """Settings of online-dpo: those of the loss, and of sampling."""

    reference = True
    first = "sigmoid"
    group: int = Field(
        2, ge=2, alias="num_generations", description="answers sampled per prompt; the best and the worst are a pair"
    )
    refill_rounds: int = Field(
        0,
        ge=0,
        description="replace prompts whose answers have equal rewards by further ones, in at most so many rounds",
    )

    @classmethod
    def with_sections(cls, values: Mapping[str, Any]) -> type[Self]:
        """Return the model with the settings of the losses and of the sampler that ``values`` name."""
        completed = super().with_sections(values)
        return OnPolicySettings.with_sections.__func__(completed, values)  # type: ignore[attr-defined,no-any-return]

    @classmethod
    def misfit(cls, name: str, loss: Loss) -> str | None:
        if loss.whole_step:
            return f"loss {name} compares all pairs of a step, which online-dpo cannot do: use --method dpo"
        return super().misfit(name, loss)


class _Tempered(NamedTuple):
    """A policy that scores at the temperature of the samples."""

    model: torch.nn.Module
    score: Any


class OnlineDPO(LossMethod[OnlineDPOSettings]):
    """Direct alignment from online feedback: answers of the policy, of which a reward makes the chosen and the rejected one."""

    name = "online-dpo"
    paper = "Guo et al. 2024, Direct Language Model Alignment from Online AI Feedback, https://arxiv.org/abs/2402.04792"
    rows = "prompt"
    needs = frozenset({"reference", "reward"})
    settings_type = OnlineDPOSettings.with_sections({})
    defaults = {"train.learning_rate": 5e-7, "train.lr_scheduler_type": "constant", "train.num_train_epochs": 1}
    lora_defaults = {"train.learning_rate": 5e-6}
    demo = {**GROUP_DEMO, "method.num_generations": 8}

    @property
    def reuse(self) -> Reuse:
        return self.settings.reuse

    @hookimpl
    def align_prepare_batch(self, batch: Batch, rollouts: Rollouts | None) -> Batch:
        """Sample answers, and note the best and the worst of each prompt and their log-probabilities by the reference (algorithm 1)."""
        assert rollouts is not None
        s = self.settings
        batch = informative(batch, rollouts, s.group, rounds=s.refill_rounds)
        picks = best_and_worst(batch)
        pairs = Batch([example.narrow(*pick) for example, pick in zip(batch.examples, picks, strict=True)])
        reference = pairs.with_tokens(reference=rollouts.score(pairs, reference=True).logps).columns["reference"]
        differ = [best != worst for best, worst in picks]
        each = [Batch([pair]).counts for pair in pairs.examples]
        counts = {
            f"pairs/{name}": [one[name] * keep for one, keep in zip(each, differ, strict=True)]
            for name in Batch(()).counts
        }
        batch = replace(batch, row_counts={**batch.row_counts, **counts})
        return batch.with_column("picks", picks).with_column("reference", reference)

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compute the loss over the pairs; prompts whose answers have equal rewards are left out."""
        picks = batch.columns["picks"]
        which = [i for i, (best, worst) in enumerate(picks) if best != worst]
        some = bool(which)
        pairs = batch.rows(which or [0])
        chosen = [example.narrow(*pick) for example, pick in zip(pairs.examples, pairs.columns["picks"], strict=True)]
        tempered: Any = _Tempered(policy.model, partial(policy.score, temperature=self.settings.temperature))
        found = super().align_compute_loss(tempered, replace(pairs, examples=chosen))
        terms = [term._replace(sum=term.sum * some, per=f"pairs/{term.per}") for term in found.terms]
        of_pairs = found.metrics.items() if some else ()
        metrics = {name: Metric(one.sum, f"pairs/{one.per}") for name, one in of_pairs}
        like = terms[0].sum.detach()
        metrics["groups_alike"] = Metric(like.new_full((), len(picks) - len(which)), "rows")
        return LossOutput(terms, rollout_metrics(batch, like) | metrics)
