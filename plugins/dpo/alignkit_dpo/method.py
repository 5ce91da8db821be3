"""The dpo method: a loss of pairs relative to a reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignkit import Batch, Rollouts, hookimpl
from alignkit_losses import LossMethod, LossSettings, chosen
from pydantic import Field, ValidationInfo, field_validator

from alignkit_dpo.reference import MovingReference

_MIX = 0.6


class DPOSettings(LossSettings):
    """Settings of dpo."""

    reference = True
    first = "sigmoid"
    reference_update_every: int | None = Field(
        None,
        ge=1,
        description="optimizer steps after which the reference is moved towards the policy (TR-DPO; default: never)",
        json_schema_extra={"elsewhere": ["sync_ref_model", "ref_model_sync_steps"]},
    )
    reference_mix: float = Field(
        _MIX,
        gt=0,
        le=1,
        description="share of the way from the reference to the policy that it is moved; 1: the reference becomes the policy",
        json_schema_extra={"elsewhere": ["ref_model_mixup_alpha"]},
    )

    @field_validator("reference_update_every")
    @classmethod
    def _has_a_reference(cls, value: int | None, info: ValidationInfo) -> int | None:
        losses = info.data.get("loss")
        if value and losses and not any("reference" in loss.needs for loss in chosen(losses)):
            raise ValueError("it has no effect: the chosen loss uses no reference")
        return value

    @field_validator("reference_mix")
    @classmethod
    def _of_an_update(cls, value: float, info: ValidationInfo) -> float:
        if value != _MIX and info.data.get("reference_update_every", 1) is None:
            raise ValueError("it has no effect without reference_update_every")
        return value


class DPO(LossMethod[DPOSettings]):
    """Direct preference optimisation; the reference is the policy at step 0, or follows it (TR-DPO)."""

    name = "dpo"
    paper = "Rafailov et al. 2023, Direct Preference Optimization, https://arxiv.org/abs/2305.18290"
    needs = frozenset({"reference"})
    settings_type = DPOSettings.with_sections({})
    defaults = {"train.learning_rate": 1e-6}
    lora_defaults = {"train.learning_rate": 1e-5}

    def __init__(self, settings: DPOSettings) -> None:
        super().__init__(settings)
        every = settings.reference_update_every
        self.moving = None if every is None else MovingReference(every, settings.reference_mix)
        if self.moving:
            self.needs = self.needs - {"reference"} | {"start"}

    @property
    def whole_step(self) -> bool:
        return self.moving is not None or super().whole_step

    @hookimpl
    def align_prepare_batch(self, batch: Batch, rollouts: Rollouts | None) -> Batch | None:
        """Score the step with a reference that has moved, and evaluate the losses that depend on all of its pairs."""
        if self.moving and rollouts:
            batch = self.moving.score(batch, rollouts)
        return super().align_prepare_batch(batch, rollouts) or batch

    def state(self) -> dict[str, Any]:
        return super().state() | (self.moving.state() if self.moving else {})

    def load_state(self, state: Mapping[str, Any]) -> None:
        if self.moving:
            self.moving.load_state(state)
        super().load_state({key: value for key, value in state.items() if not key.startswith("reference/")})
