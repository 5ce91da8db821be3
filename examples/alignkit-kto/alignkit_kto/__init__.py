"""KTO: Model Alignment as Prospect Theoretic Optimization (Ethayarajh et al. 2024, arXiv:2402.01306)."""

from __future__ import annotations

from dataclasses import replace

import torch
from alignkit import Batch, LossOutput, LossTerm, Method, Metric, Policy, Settings, hookimpl
from pydantic import Field


def kto_loss(ratios: torch.Tensor, labels: torch.Tensor, kl: float, *, beta: float) -> torch.Tensor:
    """Return the unweighted loss of each answer, ``[G]`` (equation 8).

        z0 = KL(pi || ref), r = log pi(y|x) - log ref(y|x)
        L  = 1 - sigmoid(beta (r - z0)) for a good answer, 1 - sigmoid(beta (z0 - r)) for a bad one

    >>> kto_loss(torch.tensor([0.0, 0.0]), torch.tensor([True, False]), 0.0, beta=0.1)
    tensor([0.5000, 0.5000])
    """
    margins = torch.where(labels, ratios - kl, kl - ratios)
    return 1 - torch.sigmoid(beta * margins)


class KTOSettings(Settings):
    """Settings of kto."""

    beta: float = Field(0.1, gt=0, description="strength of the implicit KL penalty to the reference")
    desirable_weight: float = Field(1.0, ge=0, description="weight of good answers")
    undesirable_weight: float = Field(1.0, ge=0, description="weight of bad answers")


class KTO(Method[KTOSettings]):
    """Training on answers labelled good or bad, relative to the reference and a KL estimated over the whole step."""

    name = "kto"
    paper = "Ethayarajh et al. 2024, KTO, https://arxiv.org/abs/2402.01306"
    rows = "unpaired"
    needs = frozenset({"reference", "start"})
    settings_type = KTOSettings
    defaults = {"train.learning_rate": 1e-6}

    @hookimpl
    def align_prepare_batch(self, policy: Policy, batch: Batch) -> Batch:
        """Estimate z0 over the step without gradient: every prompt with the answer of the next row (section 4.1)."""
        examples = batch.examples
        mismatched = [
            replace(example, completions=examples[(i + 1) % len(examples)].completions, masks=None)
            for i, example in enumerate(examples)
        ]
        own, reference = (policy.score(mismatched, grad=False, reference=r).sums() for r in (False, True))
        return batch.with_shared(kl=max(float((own - reference).mean()), 0.0))

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compute the weighted sum of the answers' losses (see :func:`kto_loss`)."""
        s, kl = self.settings, batch.shared["kl"]
        scores = policy.score(batch.examples)
        ratios = scores.sums() - batch.reference(scores).sums()  # (G,)
        labels = torch.tensor([bool(e.fields["label"]) for e in batch.examples], device=ratios.device)
        weights = torch.where(labels, s.desirable_weight, s.undesirable_weight)
        losses = weights * kto_loss(ratios, labels, kl, beta=s.beta)
        rewards = (s.beta * ratios).detach()
        signs = torch.where(labels, 1.0, -1.0)
        metrics = {
            "kl": Metric(ratios.new_tensor(kl * len(batch)), "rows"),
            "rewards/signed": Metric((signs * rewards).sum(), "rows"),
            "logps/mean": Metric(scores.means().detach().sum(), "rows"),
        }
        return LossOutput([LossTerm("kto", losses.sum(), "rows")], metrics)
