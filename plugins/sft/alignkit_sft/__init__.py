"""Supervised fine-tuning: the negative log-likelihood of the answer."""

from __future__ import annotations

from alignkit_sft.method import SFT, SFTSettings

__all__ = ["SFT", "SFTSettings"]
