"""Reward-ranked fine-tuning (RAFT): imitation of the best of several sampled answers."""

from alignkit_raft.method import RAFT, RAFTSettings

__all__ = ["RAFT", "RAFTSettings"]
