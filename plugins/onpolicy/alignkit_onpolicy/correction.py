"""Importance sampling between the sampler and the trained policy, which compute the same probabilities differently.

A sampler with other kernels or types (vLLM) draws answers from a distribution that differs slightly from the one that is
trained. The ratio of the policy's probability of a token to the sampler's own corrects the loss of that token.
"""

from __future__ import annotations

import torch
from alignkit import Batch, Scores
from alignkit.errors import RunFailedError

from alignkit_onpolicy.losses import kl_estimate
from alignkit_onpolicy.settings import PolicyGradientSettings

COLUMN = "sampler"
"""Column of a batch with the sampler's own log-probabilities."""


def correction_weights(log_ratios: torch.Tensor, *, kind: str, low: float, high: float) -> torch.Tensor:
    """Return the factor of every token's loss, ``[N]``, given the log-ratio of the policy to its sampler.

        tis     min(rho, high)                            truncated importance sampling (Yao et al. 2025, fengyao.notion.site)
        icepop  rho if low <= rho <= high, 0 otherwise    IcePop, arXiv:2510.18855

    >>> rho = torch.tensor([0.25, 1.0, 8.0]).log()
    >>> correction_weights(rho, kind="tis", low=0.5, high=2.0), correction_weights(rho, kind="icepop", low=0.5, high=5.0)
    (tensor([0.2500, 1.0000, 2.0000]), tensor([0., 1., 0.]))
    """
    ratios = log_ratios.exp()
    if kind == "tis":
        return ratios.clamp(max=high)
    return torch.where((ratios >= low) & (ratios <= high), ratios, 0.0)


def correction_of(batch: Batch, old: Scores, settings: PolicyGradientSettings) -> dict[str, torch.Tensor]:
    """Return the columns ``correction`` (if the settings ask for it) and ``sampler_kl`` of a rollout, ``[N]`` each.

    Both are missing where the trained model itself sampled: its log-probabilities are those of the policy, and nothing is
    corrected. Raises ``RunFailedError`` if another sampler does not return its log-probabilities.
    """
    if COLUMN not in batch.columns:
        if settings.correction != "none" and settings.sampler != "model" and len(batch):
            raise RunFailedError(
                f"the sampler {settings.sampler} does not return the log-probabilities of its tokens, which method.correction "
                "needs: set method.correction=none, or use another sampler"
            )
        return {}
    log_ratios = old.logps - batch.tokens(COLUMN, old.logps)
    found = {"sampler_kl": kl_estimate(-log_ratios, "k3")}  # of the sampler from the policy
    if settings.correction != "none":
        bounds = {"low": settings.correction_low, "high": settings.largest_ratio}
        found["correction"] = correction_weights(log_ratios, kind=settings.correction, **bounds)
    return found


def corrected(loss: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the losses ``[N]`` of a micro-batch times their correction, unchanged if there is none."""
    return loss * batch.tokens("correction", loss) if "correction" in batch.columns else loss
