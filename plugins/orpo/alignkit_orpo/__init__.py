"""Odds-ratio preference optimisation (ORPO), without a reference model."""

from alignkit_orpo.losses import log1mexp, log_odds_ratio, odds_ratio_loss
from alignkit_orpo.method import ORPO, ORPOSettings

__all__ = ["ORPO", "ORPOSettings", "log1mexp", "log_odds_ratio", "odds_ratio_loss"]
