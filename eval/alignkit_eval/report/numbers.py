"""What training came to: loss, speed and cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignkit import LoadedModel
from alignkit.rundir.metrics import MetricsLog
from alignkit.system.distributed import world_size


def training_numbers(
    metrics: Path, loaded: LoadedModel, reference_tokens: int, rollout_tokens: int, seconds: float
) -> dict[str, Any]:
    """Return the results of training: the last loss, the mean speed over the logging steps, and the cost.

    ``flops`` counts per trained token 2 N for the forward, 2 N for the backward through the activations and 2 T for the
    gradients of the T trained parameters (6 N if all are trained: Kaplan et al. 2020, arXiv:2001.08361, section 2.1), and
    2 N per token that is sampled or scored without gradient. As in that paper, products inside attention are not counted.
    """
    records = [record for record in MetricsLog(metrics).read() if "loss" in record]
    last = records[-1] if records else {}
    speeds = [record["tokens_per_second"] for record in records if record.get("tokens_per_second")]
    tokens = last.get("tokens") or 0
    size, trained = loaded.parameters, loaded.trainable
    return {
        "loss": last.get("loss"),
        "tokens": tokens,
        "tokens_per_second": (speed := sum(speeds) / len(speeds) if speeds else None),
        "tokens_per_second_per_device": None if speed is None else speed / world_size(),
        "reference_tokens": reference_tokens,
        "rollout_tokens": rollout_tokens,
        "seconds": seconds,
        "memory_gb": max((record["memory_gb"] for record in records if record.get("memory_gb")), default=None),
        "flops": (4 * size + 2 * trained) * tokens + 2 * size * (reference_tokens + rollout_tokens),
    }
