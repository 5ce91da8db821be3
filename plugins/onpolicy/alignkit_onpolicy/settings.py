"""Settings shared by the methods that train on sampled answers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

from alignkit import OnPolicySettings
from pydantic import Field, model_validator

GROUP_DEMO: Mapping[str, Any] = MappingProxyType(
    {
        "method.rewards": "alignkit.demo.world:quality",
        "method.max_new_tokens": 32,
        "train.learning_rate": 1e-3,
        "train.per_device_train_batch_size": 16,
        "train.max_steps": 80,
        "train.lr_scheduler_type": "constant",
        "eval.suites": ["generate", "prefs", "perplexity"],
    }
)
"""Defaults on the embedded demo of the methods that compare several answers to a prompt."""

_CAPS = {"tis": 2.0, "icepop": 5.0}


class PolicyGradientSettings(OnPolicySettings):
    """Settings of a policy gradient: the correction of differences between sampler and policy, and an entropy bonus."""

    correction: Literal["none", "tis", "icepop"] = Field(
        "none",
        description="correct each token's loss by its ratio of the policy's probability to the sampler's: truncated at "
        "correction_cap (tis), or 0 outside correction_low and correction_cap (icepop); the sampler model needs none",
    )
    correction_cap: float | None = Field(
        None, gt=0, description="largest ratio of the correction (default: 2 for tis, 5 for icepop)"
    )
    correction_low: float = Field(0.5, ge=0, description="smallest ratio of correction icepop")
    entropy_coef: float = Field(
        0.0, ge=0, description="weight of an entropy bonus: the mean entropy of the tokens' distributions, in nats"
    )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.correction == "none" and self.correction_cap is not None:
            raise ValueError("correction_cap has no effect with correction: none")
        if self.correction != "icepop" and self.correction_low != 0.5:
            raise ValueError("correction_low has no effect without correction: icepop")
        if self.overlong_penalty != 1 and not self.overlong_buffer:
            raise ValueError("overlong_penalty has no effect without overlong_buffer")
        return self

    @property
    def largest_ratio(self) -> float:
        """Largest ratio of the correction."""
        return self.correction_cap or _CAPS[self.correction]
