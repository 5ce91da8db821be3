"""A run that resumes from its last step trains none: wherever in an epoch that step is, and whichever trainer trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.training.checkpoints import last_checkpoint

from tests.helpers.engine import build_trainer, configuration, random_pairs, random_prompts, weights
from tests.plugins.test_trl import trainer_of

ON_POLICY = {"reward": "length", "max_new_tokens": 3, "minibatches": 2}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "inside an epoch": ("orpo", {"max_steps": 2}),
    "at the end of an epoch": ("orpo", {"max_steps": 3}),
    "inside the second epoch": ("dpo", {"max_steps": 4}),
    "a part of an epoch": ("orpo", {"num_train_epochs": 1.4}),
    "steps of several micro-batches": ("orpo", {"max_steps": 2, "gradient_accumulation_steps": 2}),
    "inside a rollout": ({"name": "grpo", **ON_POLICY}, {"max_steps": 3}),
    "at the end of a rollout": ({"name": "ppo", **ON_POLICY, "epochs": 1}, {"max_steps": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_no_step_is_trained(case: str, tmp_path: Path) -> None:
    method, train = CASES[case]
    rows = random_pairs(20) if isinstance(method, str) else random_prompts(40)
    config = configuration(method, **{"max_steps": -1, "save_strategy": "steps", "save_steps": 50, **train})
    whole, _ = build_trainer(config, tmp_path, rows)
    whole.train()
    again, seen = build_trainer(config, tmp_path, rows)
    again.train(resume_from_checkpoint=str(last_checkpoint(tmp_path)))
    assert again.state.global_step == whole.state.global_step > 0
    assert torch.equal(weights(again.model), weights(whole.model))
    assert seen.losses() == []


def test_trl_s_trainers_train_none_either(tmp_path: Path) -> None:
    train = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}
    whole, _ = trainer_of("trl-dpo", tmp_path, **train)
    whole.train()
    again, _ = trainer_of("trl-dpo", tmp_path, **train)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2
    assert torch.equal(weights(again.model), weights(whole.model))
