"""The settings of distill."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from alignkit import OnPolicySettings, RewardSpecs
from pydantic import Field, model_validator


class DistillSettings(OnPolicySettings):
    """Settings of distill."""

    reward_optional: ClassVar[bool] = True

    teacher: str | None = Field(
        None,
        description="the teacher: model or adapter directory, hub id, run directory, or demo",
        json_schema_extra={"elsewhere": ["teacher_model_name_or_path"]},
    )
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16", "checkpoint"] = Field(
        "auto", description="dtype of the teacher's weights; auto: model.dtype"
    )
    teacher_top_k: int = Field(
        0,
        ge=0,
        description="compare the teacher's this many most likely tokens, and all others as one (0: all tokens)",
    )
    teacher_logps: str | None = Field(
        None,
        description="Parquet file with the teacher's log-probabilities of the rows' tokens; with teacher it is written before "
        "training if it does not exist, without teacher it is only read",
    )
    on_policy: float | None = Field(
        None,
        ge=0,
        le=1,
        alias="lmbda",
        description="share of batches whose answers the policy samples; the others have the data's completions (default: "
        "0.5, and 0 with teacher_logps)",
    )
    beta: float = Field(
        0.5,
        ge=0,
        le=1,
        description="generalised Jensen-Shannon divergence, from 0 (forward KL) to 1 (reverse KL)",
    )
    rewards: RewardSpecs = Field(
        default_factory=list, alias="reward", description="rewards of the sampled answers, which are only logged"
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.teacher is None and self.teacher_logps is None:
            raise ValueError(
                "distill needs a teacher: set method.teacher to a model, or method.teacher_logps to a file"
            )
        if self.teacher_logps is not None and self.on_policy:
            raise ValueError(
                "teacher_logps has the teacher's log-probabilities of the data's completions, not of sampled answers: "
                "set lmbda to 0, or use teacher alone"
            )
        if self.teacher_logps is not None and self.teacher is not None and not self.teacher_top_k:
            raise ValueError("a file teacher_logps holds the most likely tokens: set teacher_top_k, e.g. to 64")
        if self.teacher_logps is not None and self.teacher is None and self.teacher_top_k:
            raise ValueError("teacher_top_k has no effect on a file that exists: leave it out")
        if self.missing_end_penalty or self.overlong_buffer:
            raise ValueError("missing_end_penalty and overlong_buffer have no effect: distill trains on no reward")
        if self.rewards and not self.share:
            raise ValueError("a reward has no effect with lmbda 0: no answers are sampled")
        return self

    @property
    def share(self) -> float:
        """Share of batches that are on-policy."""
        return (0.5 if self.teacher_logps is None else 0.0) if self.on_policy is None else self.on_policy
