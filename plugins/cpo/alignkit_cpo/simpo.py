"""The simpo method: cpo with means over tokens and a target margin."""

from __future__ import annotations

from alignkit_losses import LossMethod

from alignkit_cpo.method import CPOSettings


class SimPOSettings(CPOSettings):
    """Settings of simpo."""

    first = "simpo"


class SimPO(LossMethod[SimPOSettings]):
    """Preference optimisation with the mean log-probability per token as reward, and a target margin; no reference model."""

    name = "simpo"
    paper = "Meng et al. 2024, SimPO, https://arxiv.org/abs/2405.14734"
    settings_type = SimPOSettings.with_sections({})
    defaults = {"train.learning_rate": 1e-6}
    lora_defaults = {"train.learning_rate": 1e-5}
