"""Content of run.json: the description of a run and the results of its training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.config import RunConfig
from alignkit.contract import LoadedModel, Method
from alignkit.data.table.report import DataReport
from alignkit.rundir.metrics import MetricsLog
from alignkit.settings.strategies import strategy_name
from alignkit.system.distributed import world_size
from alignkit.system.environment import device_name, environment
from alignkit.system.together import gathered

if TYPE_CHECKING:
    from transformers import Trainer


def description(
    config: RunConfig, method: Method[Any], loaded: LoadedModel, scorer: str, data: DataReport, started: float
) -> dict[str, Any]:
    """Return the record of a run before training: configuration, conventions, hashes, versions. Every process must call it."""
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
            "scorer": scorer,
        },
        "data": data.to_dict(),
        "started": started,
        "environment": environment(),
        "processes": {
            "world_size": world_size(),
            "nodes": config.run.nodes,
            "strategy": strategy_name(config),
            "devices": gathered("the devices", device_name(use_cpu=bool(config.train.arguments.get("use_cpu")))),
        },
    }


def training_numbers(
    metrics: Path, loaded: LoadedModel, *, reference_tokens: int, rollout_tokens: int, seconds: float
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


def callbacks_record(trainer: Trainer) -> dict[str, Any]:
    """Return what the callbacks of installed packages add to the record."""
    found = [c.for_record(trainer) for c in trainer.callback_handler.callbacks if hasattr(c, "for_record")]
    return {key: value for one in found for key, value in one.items()}
