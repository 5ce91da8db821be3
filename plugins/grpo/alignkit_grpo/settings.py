"""The settings of grpo."""

from __future__ import annotations

from typing import Any, Literal, Self

from alignkit_onpolicy import PolicyGradientSettings
from pydantic import Field, model_validator

from alignkit_grpo.variants import VARIANTS, Variant

_RATIO = ("clip", "clip_high", "importance", "surrogate")
"""Settings of the importance weight, which is 1 in the first step on a rollout."""
_GROUPED = {"baseline": ("mean", "leave_one_out"), "scale": ("group",), "per_reward": (True,)}


class GRPOSettings(PolicyGradientSettings):
    """Settings of grpo."""

    variant: Variant | None = Field(
        None,
        description="settings of a published algorithm, which every other setting overrides (see its README)",
        json_schema_extra={"elsewhere": ["loss_type"]},
    )
    group: int = Field(8, ge=1, alias="num_generations", description="answers sampled per prompt")
    refill_rounds: int = Field(
        0,
        ge=0,
        description="dynamic sampling: replace groups of equal rewards by those of further prompts, in at most so many rounds",
    )
    per_reward: bool = Field(
        False, description="with several rewards, normalise each one within its group before they are summed (GDPO)"
    )
    baseline: Literal["mean", "leave_one_out", "greedy", "none"] = Field(
        "mean",
        description="baseline of an answer's reward: mean of its group (GRPO), or of the other answers (RLOO), the reward of "
        "the greedy answer (ReMax), or none",
    )
    scale: Literal["group", "batch", "none", "whiten"] = Field(
        "group",
        description="divide advantages by the standard deviation of the group or the batch, or not at all; whiten: "
        "normalise them over the rollout to mean 0 and variance 1 (REINFORCE++)",
        json_schema_extra={"elsewhere": ["scale_rewards"]},
    )
    kl_coef: float = Field(0.0, ge=0, alias="beta", description="weight of the KL to the reference")
    kl_in: Literal["loss", "reward", "tokens"] = Field(
        "loss",
        description="use the KL as a term of the loss (GRPO), or subtract it from the reward: of the answer (RLOO), or of "
        "every token with those after it (REINFORCE++)",
    )
    kl_estimator: Literal["k1", "k2", "k3"] | None = Field(
        None, description="estimator of the KL (default: k3 in the loss, k1 in the reward)"
    )
    importance: Literal["token", "sequence"] = Field(
        "token",
        description="probability ratio of every token, or of the whole answer to the power 1 / length (GSPO)",
        json_schema_extra={"elsewhere": ["importance_sampling_level"]},
    )
    surrogate: Literal["clipped", "cispo"] = Field(
        "clipped", description="clip the objective (PPO), or the ratio as a weight without gradient (CISPO)"
    )
    clip: float = Field(
        0.2,
        gt=0,
        description="lower clip range of a probability ratio: 1 - clip",
        json_schema_extra={"elsewhere": ["epsilon"]},
    )
    clip_high: float | None = Field(
        None,
        gt=0,
        description="upper clip range: 1 + clip_high (default: clip)",
        json_schema_extra={"elsewhere": ["epsilon_high"]},
    )
    mask_truncated: bool = Field(
        False,
        description="leave answers without an end token out of the loss (they count for the baseline)",
        json_schema_extra={"elsewhere": ["mask_truncated_completions"]},
    )
    reduction: Literal["token", "sequence", "sum", "constant"] = Field(
        "token",
        description="mean over all tokens (DAPO), or mean over answers of each answer's mean (GRPO), of its sum (RLOO), or of its sum / "
        "max_new_tokens (Dr. GRPO)",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_variant(cls, values: Any) -> Any:
        """Fill in the settings of the variant that are not given; the layers of a configuration do the same."""
        preset = VARIANTS.get(str(values.get("variant")), {}) if isinstance(values, dict) else {}
        missing = {key: value for key, value in preset.items() if not {key, cls.model_fields[key].alias} & {*values}}
        return {**missing, **values} if missing else values

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self._chosen("kl_in") and not self.kl_coef:
            raise ValueError("kl_in has no effect without beta")
        if self._chosen("kl_estimator") and not self.kl_coef:
            raise ValueError("kl_estimator has no effect without beta")
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_estimator k1 has no gradient on average as a term of the loss: use k2 or k3")
        if self.reuse.steps == 1 and any(map(self._chosen, _RATIO)):
            raise ValueError(
                f"{', '.join(_RATIO)} have no effect where every rollout is trained on once: set epochs or minibatches"
            )
        if self.group == 1 and self.refill_rounds:
            raise ValueError("refill_rounds compares the answers to a prompt: set num_generations to 2 or more")
        for key, values in _GROUPED.items():
            if self.group == 1 and (value := getattr(self, key)) in values:
                raise ValueError(
                    f"{key} {value} compares the answers to a prompt: set num_generations to 2 or more"
                    + ("" if key == "per_reward" else f", or another {key}")
                )
        if self.per_reward and self.baseline != "mean":
            raise ValueError("per_reward needs baseline mean: every reward is compared with the mean of its group")
        return self

    def _chosen(self, key: str) -> bool:
        """Return whether a setting is neither at its default nor at that of the variant."""
        default = type(self).model_fields[key].default
        return getattr(self, key) not in (default, (VARIANTS[self.variant] if self.variant else {}).get(key, default))

    @property
    def bounds(self) -> dict[str, float]:
        """Clip range of a probability ratio, below and above 1."""
        return {"low": self.clip, "high": self.clip_high or self.clip}
