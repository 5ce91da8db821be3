"""Settings and rollouts of a tiny model for the tests of on-policy training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from alignkit import OnPolicySettings
from alignkit.contract.rewards import Answered
from alignkit.onpolicy.rollouts import ModelRollouts
from alignkit.scoring.policy import ModelPolicy
from alignkit.scoring.reference import StartWeights

from tests.helpers.engine import (
    rollout_parts,
)

SAMPLING: dict[str, Any] = {"reward": "length", "max_new_tokens": 8}
PPO: dict[str, Any] = {"name": "ppo", **SAMPLING, "epochs": 2, "minibatches": 2}
GRPO: dict[str, Any] = {"name": "grpo", **SAMPLING, "group": 3}
TRAIN: dict[str, Any] = {"optim": "adamw_torch", "max_steps": 8, "logging_steps": 1, "tokens_per_micro_batch": 120}
TRAIN |= {"per_device_train_batch_size": 4, "learning_rate": 3e-3}


def lora(model: torch.nn.Module, **options: Any) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    return get_peft_model(model, config)  # type: ignore[arg-type]


def rollouts(model: torch.nn.Module, settings: OnPolicySettings, *rewards: Any, number: int = 0) -> ModelRollouts:
    policy = ModelPolicy(model)
    policy.start = StartWeights(model)
    return ModelRollouts(rollout_parts(settings, model, 0, rewards), policy, number)


def constant(answers: Sequence[Answered]) -> list[float]:
    return [0.7] * len(answers)
