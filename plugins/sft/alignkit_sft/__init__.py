"""Supervised fine-tuning: negative log-likelihood of the completion."""

from alignkit_sft.method import SFT, SFTSettings

__all__ = ["SFT", "SFTSettings"]
