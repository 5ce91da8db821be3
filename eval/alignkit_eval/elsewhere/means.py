"""Means of items' numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import Estimate

from alignkit_eval.statistics import clustered_mean, clustered_proportion


def mean_of(key: str, items: Sequence[Mapping[str, Any]]) -> Estimate:
    """Return the mean of ``key`` with its clustered 95 % interval; that of values between 0 and 1 stays there."""
    values, clusters = [item[key] for item in items], [item["cluster"] for item in items]
    inside = min(values) >= 0 and max(values) <= 1
    return clustered_proportion(values, clusters) if inside else clustered_mean(values, clusters)
