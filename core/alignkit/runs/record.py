"""What run.json says of a run: what it is made of, and what training came to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.rundir.metrics import MetricsLog
from alignkit.system.environment import environment

if TYPE_CHECKING:
    from alignkit.runs.prepare import PreparedRun


def description(prepared: PreparedRun, started: float) -> dict[str, Any]:
    """Return the record of a run that is about to train: configuration, conventions, hashes, versions."""
    method, loaded, config = prepared.session.method, prepared.loaded, prepared.config
    return {
        "status": "running",
        "method": method.name,
        "paper": method.paper,
        "conventions": method.conventions(),
        "config": config.model_dump(mode="json"),
        "seed": config.run.seed,
        "model": {
            "name": config.model.name,
            "path": loaded.path,
            "hash": loaded.fingerprint,
            "parameters": loaded.parameters,
            "trainable": loaded.trainable,
            "adapter": loaded.is_adapter,
            "scorer": prepared.scoring.backend if prepared.scoring else "classifier",
        },
        "data": prepared.data.report.to_dict(),
        "started": started,
        "environment": environment(),
    }


def training_numbers(
    metrics: Path, prepared: PreparedRun, reference_tokens: int, rollout_tokens: int, seconds: float
) -> dict[str, Any]:
    """Return what training came to: the last loss, the mean speed over the logging steps, and what it cost.

    ``flops`` counts, for a token trained, 2 N forward, 2 N backward through the activations and 2 T for the T trained
    parameters' own gradients (6 N where all are: Kaplan et al. 2020, arXiv:2001.08361, section 2.1), and 2 N for a token
    of a reference pass, and for one that was generated, or scored before it was trained on. Attention's own products are left out, as there.
    """
    records = [record for record in MetricsLog(metrics).read() if "loss" in record]
    last = records[-1] if records else {}
    speeds = [record["tokens_per_second"] for record in records if record.get("tokens_per_second")]
    tokens = last.get("tokens") or 0
    size, trained = prepared.loaded.parameters, prepared.loaded.trainable
    return {
        "loss": last.get("loss"),
        "tokens": tokens,
        "tokens_per_second": sum(speeds) / len(speeds) if speeds else None,
        "reference_tokens": reference_tokens,
        "rollout_tokens": rollout_tokens,
        "seconds": seconds,
        "memory_gb": max((record["memory_gb"] for record in records if record.get("memory_gb")), default=None),
        "flops": (4 * size + 2 * trained) * tokens + 2 * size * (reference_tokens + rollout_tokens),
    }
