"""The kto method: answers labelled good or bad, relative to a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from alignkit import Batch, Example, LossOutput, LossTerm, Method, Metric, Policy, Rollouts, Settings, hookimpl
from pydantic import Field


def kto_loss(ratios: torch.Tensor, labels: torch.Tensor, kl: float, *, beta: float) -> torch.Tensor:
    """Return the unweighted loss of each answer, ``[G]`` (equation 8); ``kl = 0`` is the unpaired loss of APO-zero.

        r = log pi(y|x) - log ref(y|x), kl an estimate of KL(pi || ref)
        L = 1 - sigmoid(beta (r - kl)) for a good answer, 1 - sigmoid(beta (kl - r)) for a bad one

    >>> kto_loss(torch.tensor([0.0, 0.0]), torch.tensor([True, False]), 0.0, beta=0.1)
    tensor([0.5000, 0.5000])
    """
    return 1 - torch.sigmoid(beta * torch.where(labels, ratios - kl, kl - ratios))


class KTOSettings(Settings):
    """Settings of kto."""

    loss: Literal["kto", "apo_zero_unpaired"] = Field(
        "kto", description="compare log-ratios with an estimate of the KL (kto), or with 0 (apo_zero_unpaired)"
    )
    beta: float = Field(0.1, gt=0, description="strength of the implicit KL penalty to the reference")
    desirable_weight: float = Field(1.0, ge=0, description="weight of the answers labelled good")
    undesirable_weight: float = Field(1.0, ge=0, description="weight of the answers labelled bad")


class KTO(Method[KTOSettings]):
    """Training on answers labelled good or bad, relative to the reference and a KL estimated over the whole step."""

    name = "kto"
    paper = "Ethayarajh et al. 2024, KTO, https://arxiv.org/abs/2402.01306"
    rows = "unpaired"
    needs = frozenset({"reference", "start"})
    settings_type = KTOSettings
    defaults = {"train.learning_rate": 1e-6}
    lora_defaults = {"train.learning_rate": 1e-5}

    @property
    def whole_step(self) -> bool:
        return self.settings.loss == "kto"

    @hookimpl
    def align_prepare_batch(self, batch: Batch, rollouts: Rollouts | None) -> Batch:
        """Count the answers of each kind, and estimate the KL over the step, without gradient: every prompt with another row's answer.

        The answer is that of the row before, over the rows of all processes (section 4.1).
        """
        good = [int(e.fields["label"]) for e in batch.examples]
        batch = replace(batch, row_counts={"good": good, "bad": [1 - one for one in good]})
        if rollouts is None:
            return batch.with_shared(kl=0.0)
        others = Batch(with_answers_of_others(batch.examples, rollouts))
        own, reference = (rollouts.score(others, reference=kept).sums() for kept in (False, True))
        total, rows = rollouts.total((own - reference).double().sum(), len(others))
        return batch.with_shared(kl=max(total / max(rows, 1), 0.0))

    @hookimpl
    def align_compute_loss(self, policy: Policy, batch: Batch) -> LossOutput:
        """Compute the weighted sum of the answers' losses (see :func:`kto_loss`)."""
        s, kl = self.settings, batch.shared["kl"]
        scores = policy.score(batch.examples)
        ratios = scores.sums() - batch.reference(scores).sums()  # (G,)
        labels = torch.tensor([bool(e.fields["label"]) for e in batch.examples], device=ratios.device)
        losses = torch.where(labels, s.desirable_weight, s.undesirable_weight)
        losses = losses * kto_loss(ratios, labels, kl, beta=s.beta)
        metrics = {"kl": Metric(ratios.new_tensor(kl * len(batch)), "rows")}
        for name, kind, count in (("chosen", labels, "good"), ("rejected", ~labels, "bad")):
            for metric, values in (("rewards", s.beta * ratios), ("logps", scores.means())):
                metrics[f"{metric}/{name}"] = Metric((values * kind).detach().sum(), count)
        return LossOutput([LossTerm(s.loss, losses.sum(), "rows")], metrics)


def with_answers_of_others(examples: Sequence[Example], rollouts: Rollouts) -> list[Example]:
    """Return this process's rows, each with the answer of the row before it among the rows of all processes."""
    answers = [list(example.completions[0]) for example in examples]
    lengths, mine = rollouts.gather(torch.tensor([len(answer) for answer in answers]))
    longest = int(lengths.max())
    padded = torch.tensor([answer + [0] * (longest - len(answer)) for answer in answers]).view(-1, longest)
    every, _ = rollouts.gather(padded)
    return [
        replace(example, completions=(every[place - 1][: int(lengths[place - 1])].tolist(),), masks=None)
        for example, place in zip(examples, mine, strict=True)
    ]
