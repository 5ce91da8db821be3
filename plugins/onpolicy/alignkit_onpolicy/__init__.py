"""Parts shared by the methods that train on sampled answers: losses, corrections, dynamic sampling, settings."""

from alignkit_onpolicy.correction import corrected, correction_of, correction_weights
from alignkit_onpolicy.losses import cispo_loss, clipped_loss, importance_weights, kl_estimate
from alignkit_onpolicy.metrics import policy_metrics
from alignkit_onpolicy.sampling import alike, best_and_worst, informative
from alignkit_onpolicy.settings import GROUP_DEMO, PolicyGradientSettings

__all__ = [
    "GROUP_DEMO",
    "PolicyGradientSettings",
    "alike",
    "best_and_worst",
    "cispo_loss",
    "clipped_loss",
    "corrected",
    "correction_of",
    "correction_weights",
    "importance_weights",
    "informative",
    "kl_estimate",
    "policy_metrics",
]
