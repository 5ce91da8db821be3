"""Metrics of a policy gradient on a rollout."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from alignkit import Batch, Metric, rollout_metrics


def policy_metrics(
    batch: Batch, log_weights: torch.Tensor, tokens: Mapping[str, torch.Tensor], *, low: float, high: float
) -> dict[str, Metric]:
    """Return the metrics of a rollout and of the policy's distance from it, with ``tokens``: further values ``[N]``.

    They are ``approx_kl`` (KL of the policy that sampled from this one, never negative), ``clip_fraction`` (share of importance
    weights outside ``1 - low`` to ``1 + high``), ``entropy`` of the policy that sampled, and, with a sampler that returns its
    log-probabilities, ``sampler_kl`` and the mean ``correction``.
    """
    change = log_weights.detach()
    values = {
        **tokens,
        "approx_kl": change.expm1() - change,
        "clip_fraction": (change.exp() < 1 - low) | (change.exp() > 1 + high),
    }
    kept = [name for name in ("entropy", "sampler_kl", "correction") if name in batch.columns]
    values |= {name: batch.tokens(name, change) for name in kept}
    found = {name: Metric(value.detach().float().sum(), "completion_tokens") for name, value in values.items()}
    return rollout_metrics(batch, change) | found
