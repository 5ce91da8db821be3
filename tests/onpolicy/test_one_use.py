"""A rollout of grpo that serves one step: its log-probabilities are those of the training pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.contract import Batch

from tests.helpers.engine import build_trainer, configuration, random_prompts
from tests.helpers.onpolicy import GRPO, TRAIN

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "kl": {"beta": 0.1},
    "entropy": {"entropy_coef": 0.1},
    "dr_grpo": {"variant": "dr_grpo", "temperature": 0.7},
    "gdpo": {"variant": "gdpo"},
}


def prepared(folder: Path, method: dict[str, Any]) -> tuple[Any, Batch]:
    train = TRAIN | {"max_steps": 1, "tokens_per_micro_batch": 10_000}
    trainer, _ = build_trainer(configuration(GRPO | method, **train), folder, random_prompts(12))
    return trainer, trainer.steps.prepare(trainer.steps.rows_of_step(0), 0, 0.0)


def gradient(trainer: Any, batch: Batch) -> torch.Tensor:
    trainer.model.zero_grad()
    output = trainer.parts.session.compute_loss(trainer.parts.policy, batch, 0.0)
    torch.stack([term.sum * (term.weight / max(batch.counts[term.per], 1)) for term in output.terms]).sum().backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_scoring_once_more(tmp_path: Path, kind: str) -> None:
    trainer, batch = prepared(tmp_path, KINDS[kind])
    assert "logps" not in batch.columns
    policy, temperature = trainer.parts.policy, trainer.parts.session.method.settings.temperature
    scores = policy.score(batch.examples, grad=False, entropy=True, temperature=temperature)
    scored = batch.with_tokens(logps=scores.logps, entropy=scores.entropy)
    mine, expected = gradient(trainer, batch), gradient(trainer, scored)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(mine, expected, atol=1e-6 * float(expected.norm()), rtol=1e-6)
    logged = [trainer.parts.session.compute_loss(policy, one, 0.0).metrics for one in (batch, scored)]
    assert logged[0].keys() == logged[1].keys()
    torch.testing.assert_close(logged[0]["entropy"].sum, logged[1]["entropy"].sum)
    assert float(logged[0]["approx_kl"].sum) == float(logged[0]["clip_fraction"].sum) == 0.0


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        ({}, 1),
        ({"beta": 0.1}, 2),  # the reference
        ({"beta": 0.1, "kl_in": "reward"}, 3),
        ({"minibatches": 2}, 3),
        ({"epochs": 2}, 3),
    ],
    ids=str,
)
def test_the_passes_over_a_rollout(tmp_path: Path, method: dict[str, Any], passes: int) -> None:
    """Forward passes that score answers, counted over all steps of one rollout."""
    steps = method.get("epochs", 1) * method.get("minibatches", 1)
    train = TRAIN | {"max_steps": steps, "tokens_per_micro_batch": 10_000, "per_device_train_batch_size": 2}
    trainer, seen = build_trainer(configuration(GRPO | method, **train), tmp_path, random_prompts(12))
    trainer.parts.rollouts.max_tokens = 10_000
    counted = []
    trainer.model.register_forward_pre_hook(
        lambda module, given, named: counted.append(1) if named.get("plan") is not None else None, with_kwargs=True
    )
    trainer.train()
    assert len(counted) == passes
    assert all(record["entropy"] > 0 for record in seen.logs if "loss" in record)
