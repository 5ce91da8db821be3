"""Group-relative policy optimisation (GRPO), with RLOO as a setting."""

from alignkit_grpo.losses import group_advantages
from alignkit_grpo.method import GRPO, GRPOSettings

__all__ = ["GRPO", "GRPOSettings", "group_advantages"]
