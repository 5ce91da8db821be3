"""What a configuration says of several processes: their number, and their strategy (``alignkit_cluster`` has the presets)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.config import RunConfig
from alignkit.errors import ConfigError, first_line
from alignkit.system.distributed import accelerators

SHARDING = ("fsdp", "fsdp_config", "deepspeed")  # keys of train: for what processes share


def named_strategy(arguments: Mapping[str, Any]) -> str | None:
    """Return what the keys ``fsdp`` and ``deepspeed`` of ``train:`` ask for: ``fsdp``, ``zero0`` to ``zero3``, or None."""
    if arguments.get("fsdp"):
        return "fsdp"
    given = arguments.get("deepspeed")
    try:
        content = json.loads(Path(given).read_text(encoding="utf-8")) if isinstance(given, str) else given
        return f"zero{int(content.get('zero_optimization', {}).get('stage', 0))}" if content else None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"train.deepspeed is not a DeepSpeed configuration: {first_line(error)}") from error


def strategy_name(config: RunConfig) -> str:
    """Return the strategy in use as the console and the record name it."""
    return named_strategy(config.train.arguments) or ("none" if processes_of(config) == 1 else config.run.strategy)


def processes_of(config: RunConfig) -> int:
    """Return how many processes a configuration asks for, on all machines."""
    run, use_cpu = config.run, bool(config.train.arguments.get("use_cpu"))
    return run.nodes * (accelerators(use_cpu=use_cpu) if run.processes == "auto" else run.processes)
