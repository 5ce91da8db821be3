"""Rewards of a run: its evaluation by default, and the models that they load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import LoadedModel, NamedReward, Reward, RunConfig
from alignkit.config import EvalConfig
from alignkit.errors import ModelError


def default_evaluation(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return defaults by dotted key: the reward of held-out prompts' answers before and after training.

    Given the values of a configuration; none where it names suites or has no reward.
    """
    method, evaluation = values.get("method") or {}, values.get("eval") or {}
    rewards = method.get("reward", method.get("rewards"))
    if not rewards or "suites" in evaluation:
        return {}
    found = {"eval.suites": ["generate", *EvalConfig().suites], "eval.settings.generate.rewards": rewards}
    longest = method.get("max_new_tokens")
    return found if longest is None else found | {"eval.settings.generate.max_new_tokens": longest}


def models_of(rewards: Sequence[NamedReward], config: RunConfig, key: str) -> list[LoadedModel]:
    """Return the models that the rewards of ``key`` load, without weights; raises ``ModelError`` that names the reward."""
    found: list[LoadedModel] = []
    for reward in rewards:
        function = getattr(reward, "function", None)
        try:
            found += function.models(config) if isinstance(function, Reward) else []
        except ModelError as error:
            raise ModelError(f"{key}: {reward.label}: {error}") from error
    return found
