"""Reward modelling, and the built-in rewards."""

from alignkit_reward.functions import Function, Length, Match, Regex, TrainedReward
from alignkit_reward.losses import reward_loss
from alignkit_reward.method import RewardModelling, RewardSettings

__all__ = ["Function", "Length", "Match", "Regex", "RewardModelling", "RewardSettings", "TrainedReward", "reward_loss"]
