"""The cpo method: a loss of pairs without a reference."""

from __future__ import annotations

from alignkit_losses import LossMethod, LossSettings


class CPOSettings(LossSettings):
    """Settings of cpo."""

    reference = False
    first = "cpo"


class CPO(LossMethod[CPOSettings]):
    """Preference optimisation by the policy's own log-probabilities; no reference model."""

    name = "cpo"
    paper = "Xu et al. 2024, Contrastive Preference Optimization, https://arxiv.org/abs/2401.08417"
    settings_type = CPOSettings.with_sections({})
    defaults = {"train.learning_rate": 1e-6}
    lora_defaults = {"train.learning_rate": 1e-5}
