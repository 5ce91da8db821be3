"""Preference optimisation without a reference."""

from alignkit_cpo.method import CPO, CPOSettings
from alignkit_cpo.simpo import SimPO, SimPOSettings

__all__ = ["CPO", "CPOSettings", "SimPO", "SimPOSettings"]
