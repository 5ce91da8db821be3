"""The evaluation that a run with a reward has by default: the reward of held-out prompts' answers before and after training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignkit.config import EvalConfig


def default_evaluation(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return defaults by dotted key, given the values of a configuration; none where it names suites or has no reward."""
    method, evaluation = values.get("method") or {}, values.get("eval") or {}
    rewards = method.get("reward", method.get("rewards"))
    if not rewards or "suites" in evaluation:
        return {}
    found = {"eval.suites": ["generate", *EvalConfig().suites], "eval.settings.generate.rewards": rewards}
    longest = method.get("max_new_tokens")
    return found if longest is None else found | {"eval.settings.generate.max_new_tokens": longest}
