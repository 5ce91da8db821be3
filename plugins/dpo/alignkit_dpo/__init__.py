"""Direct preference optimisation (DPO) and variants of its loss."""

from alignkit_dpo.losses import dpo_loss
from alignkit_dpo.method import DPO, DPOSettings

__all__ = ["DPO", "DPOSettings", "dpo_loss"]
