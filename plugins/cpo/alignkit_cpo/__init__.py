"""Preference optimisation without a reference."""

from alignkit_cpo.method import CPO, CPOSettings

__all__ = ["CPO", "CPOSettings"]
