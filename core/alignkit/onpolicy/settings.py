"""Settings shared by all on-policy methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, create_model

from alignkit.config import Words
from alignkit.contract import Reuse, RewardSpecs, Settings
from alignkit.contract.registry import find, load


class OnPolicySettings(Settings):
    """Settings of every on-policy method: rewards, sampling, and how often a rollout is trained on.

    A rollout holds the prompts of ``minibatches`` optimizer steps and is trained on for ``epochs`` passes.
    """

    reward_optional: ClassVar[bool] = False
    """Whether the method also trains without a reward."""

    rewards: RewardSpecs = Field(
        default_factory=list,
        alias="reward",
        description="one or several rewards to maximise: a name (see align rewards), the path of a reward model, "
        "package.module:function, path/to/file.py:function, or {name, weight, ...settings of the reward}",
    )
    max_new_tokens: int = Field(64, ge=1, description="maximum length of a sampled answer, in tokens")
    temperature: float = Field(
        1.0, gt=0, description="divisor of the logits, both when sampling and when scoring the samples"
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="nucleus sampling: sample from the most likely tokens with this total probability"
    )
    top_k: int = Field(0, ge=0, description="sample from this many most likely tokens (0: all)")
    stop: Words = Field(
        default_factory=list, description="additional texts that end an answer; each must be a single token"
    )
    sampler: str = Field(
        "model", description="generation backend: the trained model, or a plugin's (align samplers lists them)"
    )
    samples_per_batch: int = Field(128, ge=1, description="answers generated per batch")
    epochs: int = Field(1, ge=1, description="passes over each rollout")
    minibatches: int = Field(1, ge=1, description="optimizer steps per pass over a rollout")
    missing_end_penalty: float = Field(
        0.0, ge=0, description="subtracted from the reward of an answer without an end token"
    )
    overlong_buffer: float = Field(
        0.0, ge=0, le=1, description="last share of max_new_tokens in which the reward falls with an answer's length"
    )
    overlong_penalty: float = Field(
        1.0,
        ge=0,
        description="subtracted from the reward of an answer of max_new_tokens; less of it within overlong_buffer",
    )

    @classmethod
    def with_sections(cls, values: Mapping[str, Any]) -> type[Self]:
        """Return the model with the settings of the sampler that ``values`` name, in a section of its name."""
        name = values.get("sampler", "model")
        if name == "model" or not isinstance(name, str):
            return cls
        own: Any = getattr(load(entry := find("align.samplers", name)), "settings_type", None)
        about = Field(default={}, description=f"settings of the sampler {entry.name}", validate_default=True)
        sections: dict[str, Any] = {entry.name: (own, about)} if own else {}
        return create_model(cls.__name__, __base__=cls, __module__=cls.__module__, **sections)

    def length_penalty(self, length: int, *, ended: bool) -> float:
        """Return what is subtracted from the reward of an answer of ``length`` tokens (overlong: DAPO, arXiv:2503.14476, eq. 13)."""
        buffer = self.overlong_buffer * self.max_new_tokens
        over = max(1 - (self.max_new_tokens - length) / buffer, 0.0) if buffer else 0.0
        return self.missing_end_penalty * (not ended) + self.overlong_penalty * over

    @property
    def reuse(self) -> Reuse:
        """How often a rollout is trained on."""
        return Reuse(self.epochs, self.minibatches)
