"""Strategies of training in several processes, each a preset of ``transformers.TrainingArguments``."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from alignkit import RunConfig
from alignkit.errors import ConfigError
from alignkit.settings.strategies import named_strategy, processes_of
from alignkit.system.distributed import local_world_size, world_size

_ZERO3 = dict.fromkeys(("stage3_param_persistence_threshold", "stage3_prefetch_bucket_size"), "auto")  # by width
_ZERO_KEYS = "gradient_clipping gradient_accumulation_steps train_batch_size train_micro_batch_size_per_gpu".split()


def preset(strategy: str) -> dict[str, Any]:
    """Return the keys of ``train:`` that a strategy sets; DeepSpeed's "auto" is what the other keys of ``train:`` say."""
    common = {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}, **dict.fromkeys(_ZERO_KEYS, "auto")}
    stages: dict[str, dict[str, Any]] = {"zero2": {"stage": 2}, "zero3": {"stage": 3, **_ZERO3}}
    return {"deepspeed": {"zero_optimization": stages[strategy], **common}} if strategy in stages else {}


def _refuse_other_sharding(values: Mapping[str, Any]) -> None:
    """Refuse what ``train.fsdp`` and ``train.fsdp_config`` ask of accelerate: transformers shards the model as it is loaded."""
    asked = values.get("fsdp", True)
    words = set(asked.split() if isinstance(asked, str) else asked if isinstance(asked, list) else [])
    if other := words - {"full_shard", "auto_wrap"}:
        raise ConfigError(
            f"train.fsdp: {min(other)} is not supported: fsdp shards weights, gradients and optimizer in full"
        )
    if values.get("fsdp_config"):
        raise ConfigError("train.fsdp_config is not read: the strategy fsdp has no options; remove it")


_ACCELERATES = ("deepspeed", "fsdp", "megatron_lm", "parallelism_config")


def _refuse_accelerates(given: Mapping[str, str], values: Mapping[str, Any]) -> None:
    """Refuse a way to share the model that accelerate reads from its launcher's environment: the record would not have it.

    A configuration for DeepSpeed counts more than its variable, which accelerate also sets itself where there is one.
    """
    asked = [way for way in _ACCELERATES if given.get(f"ACCELERATE_USE_{way.upper()}", "").lower() in ("true", "1")]
    if asked and not (asked == ["deepspeed"] and values.get("deepspeed")):
        raise ConfigError(
            f"accelerate launch asks for --use_{asked[0]} (its command line or its configuration file), which the run's "
            "configuration does not have: start it with --multi_gpu, and name what processes share with align's --strategy"
        )


def distribute(config: RunConfig) -> None:
    """Fill in the processes and machines, as a launcher started them or as asked for, and the strategy with its preset.

    Raises :class:`ConfigError` for a strategy that cannot be used.
    """
    run, arguments = config.run, config.train.arguments
    if world_size() > 1:
        run.processes, run.nodes = local_world_size(), -(-world_size() // local_world_size())
    run.processes = processes_of(config) // run.nodes
    several, named = processes_of(config) > 1, named_strategy(arguments)
    strategy = run.strategy if run.strategy != "auto" else named or ("ddp" if several else "auto")
    if named not in (None, strategy):
        raise ConfigError(f"run.strategy is {strategy}, but the train section asks for {named}: set one of them")
    if not several and (strategy == "fsdp" or strategy not in ("auto", named)):
        raise ConfigError(f"run.strategy: {strategy} needs several processes: add --processes N, or use strategy auto")
    values = preset(strategy) | arguments
    _refuse_accelerates(os.environ, values)
    if strategy == "fsdp":
        _refuse_other_sharding(values)
    if values.get("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"the strategy {strategy} needs a package that is not installed: pip install deepspeed")
    config.train = config.train.model_copy(update=values)
    config.run = run.model_copy(update={"strategy": "auto" if strategy in ("zero0", "zero1") else strategy})
