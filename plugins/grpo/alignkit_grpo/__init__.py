"""Group-relative policy optimisation (GRPO), and its published variants as settings."""

from alignkit_grpo.advantages import group_advantages
from alignkit_grpo.method import GRPO
from alignkit_grpo.settings import GRPOSettings

__all__ = ["GRPO", "GRPOSettings", "group_advantages"]
