"""Proximal policy optimisation (PPO)."""

from alignkit_ppo.losses import clipped_policy_loss, clipped_value_loss, explained_variance, gae
from alignkit_ppo.method import PPO, PPOSettings

__all__ = ["PPO", "PPOSettings", "clipped_policy_loss", "clipped_value_loss", "explained_variance", "gae"]
