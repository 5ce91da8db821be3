"""Content of run.json: the description of a run, and what callbacks add to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alignkit.config import RunConfig
from alignkit.contract import LoadedModel, Method
from alignkit.contract.registry import provided
from alignkit.data.table.report import DataReport
from alignkit.errors import CheckpointError
from alignkit.rundir.directory import RunDir
from alignkit.settings.strategies import strategy_name
from alignkit.system.distributed import world_size
from alignkit.system.environment import device_name
from alignkit.system.together import gathered

if TYPE_CHECKING:
    from transformers import Trainer


def description(
    config: RunConfig, method: Method[Any], loaded: LoadedModel, scorer: str, data: DataReport, started: float
) -> dict[str, Any]:
    """Return the record of a run before training: configuration, conventions, hashes, versions. Every process must call it."""
    describe_environment = provided("align.reports", "environment")
    return {
        "status": "running",
        "engine": config.run.engine,
        "method": config.method.name,
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
        "environment": describe_environment() if describe_environment else {},
        "processes": {
            "world_size": world_size(),
            "nodes": config.run.nodes,
            "strategy": strategy_name(config),
            "devices": gathered("the devices", device_name(use_cpu=bool(config.train.arguments.get("use_cpu")))),
        },
    }


def callbacks_record(trainer: Trainer) -> dict[str, Any]:
    """Return what the callbacks of installed packages add to the record."""
    found = [c.for_record(trainer) for c in trainer.callback_handler.callbacks if hasattr(c, "for_record")]
    return {key: value for one in found for key, value in one.items()}


def refuse_changed(directory: RunDir, now: Mapping[str, str]) -> None:
    """Refuse to resume with a start model or data other than the run began with: its reference would change."""
    record = directory.read_record()
    for what, value in now.items():
        began = record.get(what, {}).get("hash")
        if began is not None and began != value:
            raise CheckpointError(
                f"the {what} of {directory.path} has changed since the run began (hash {str(began)[:12]}, now "
                f"{str(value)[:12]}): restore it, or start a new run"
            )
