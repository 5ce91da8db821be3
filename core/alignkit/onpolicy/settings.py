"""Part of onpolicy: OnPolicySettings."""

from __future__ import annotations

import importlib.util
from typing import Literal

from pydantic import Field, field_validator

from alignkit.config import Words
from alignkit.contract.rewards import RewardSpecs
from alignkit.contract.types import Reuse, Settings


class OnPolicySettings(Settings):
    """Settings of every on-policy method: rewards, sampling, and how often a rollout is used.

    A rollout holds ``minibatches`` optimizer steps' worth of prompts and is passed over ``epochs`` times.
    """

    rewards: RewardSpecs = Field(
        default_factory=list,
        alias="reward",
        description="reward or rewards to maximise: a name (align rewards), a reward model's path, package.module:function, "
        "or {name, weight, ...its settings}",
    )
    max_new_tokens: int = Field(64, ge=1, description="longest answer, in tokens")
    temperature: float = Field(
        1.0, gt=0, description="divides the logits, when sampling and when scoring what was sampled"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens with this much probability")
    top_k: int = Field(0, ge=0, description="sample from this many likeliest tokens (0: all)")
    stop: Words = Field(default_factory=list, description="further texts that end an answer; each must be one token")
    sampler: Literal["model", "vllm"] = Field(
        "model", description="who generates: the model itself, or vLLM (needs a GPU)"
    )
    samples_per_batch: int = Field(128, ge=1, description="answers generated at once")
    epochs: int = Field(1, ge=1, description="passes over a rollout")
    minibatches: int = Field(1, ge=1, description="optimizer steps a pass over a rollout takes")
    missing_end_penalty: float = Field(0.0, ge=0, description="taken off the reward of an answer that was cut off")

    @field_validator("sampler")
    @classmethod
    def _sampler_is_there(cls, value: str) -> str:
        if value == "vllm" and importlib.util.find_spec("vllm") is None:
            raise ValueError("sampler vllm needs vLLM, which is not installed: pip install vllm, or take sampler model")
        return value

    @property
    def reuse(self) -> Reuse:
        """How often a rollout serves."""
        return Reuse(self.epochs, self.minibatches)
