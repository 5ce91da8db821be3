"""The dpo method: a loss of pairs relative to a reference."""

from __future__ import annotations

from alignkit_losses import LossMethod, LossSettings


class DPOSettings(LossSettings):
    """Settings of dpo."""

    reference = True
    first = "sigmoid"


class DPO(LossMethod[DPOSettings]):
    """Direct preference optimisation; the reference is the policy at step 0."""

    name = "dpo"
    paper = "Rafailov et al. 2023, Direct Preference Optimization, https://arxiv.org/abs/2305.18290"
    needs = frozenset({"reference"})
    settings_type = DPOSettings.with_sections({})
    defaults = {"train.learning_rate": 1e-6}
    lora_defaults = {"train.learning_rate": 1e-5}
