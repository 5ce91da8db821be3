"""Direct preference optimisation (DPO) and every other loss of pairs relative to a reference."""

from alignkit_dpo.method import DPO, DPOSettings

__all__ = ["DPO", "DPOSettings"]
