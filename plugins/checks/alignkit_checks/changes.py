"""What a resumed run's configuration changes: refused, or taken with ``--change`` and recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from alignkit.config import RunConfig
from alignkit.contract import registry
from alignkit.errors import CheckpointError
from alignkit.rundir.directory import RunDir
from alignkit.settings.layers import dotted
from alignkit.settings.training_arguments import DEFAULTS
from alignkit.system.terminal import redact
from alignkit.training.checkpoints import last_checkpoint, step_of
from pydantic import ValidationError

FREE = frozenset(
    "run.name run.output run.project tracker.model run.plots run.log_axes run.pause_at run.price_per_hour data.cache data.workers "
    "train.logging_steps train.logging_strategy "
    "train.logging_first_step train.log_level train.log_level_replica train.log_on_each_node train.report_to "
    "train.project train.save_total_limit train.skip_memory_metrics train.ddp_timeout".split()
)
"""Keys that do not alter the model or its evaluation."""

FIXED = ("method.name", "run.strategy", "model.dtype", "model.lora", "model.quantization", "train.optim")
"""Keys that decide what a checkpoint holds."""

BY_METRIC = {"reduce_lr_on_plateau", "greedy"}
"""Schedules of the learning rate with a state unlike that of the others."""


def changes(directory: RunDir, config: RunConfig) -> list[tuple[str, Any, Any]]:
    """Return every key that alters a model or its evaluation with its value in the run in ``directory`` and in ``config``, where they differ."""
    recorded = directory.read_record().get("config")
    if not isinstance(recorded, dict):
        return []
    before, now = (_effective(values) for values in (recorded, json.loads(redact(config.model_dump_json()))))
    keys = [key for key in {**now, **before} if key not in FREE and not key.startswith("compare.")]
    found = [(key, _value(before, key, config), _value(now, key, config)) for key in keys]
    return [(key, old, new) for key, old, new in found if old != new]


def accepted_changes(directory: RunDir, config: RunConfig, *, accept: bool) -> list[dict[str, Any]]:
    """Return what ``config`` changes of the run in ``directory``, from the step of its last checkpoint on.

    A change is ``{step, key, from, to}``.

    Raises :class:`CheckpointError` if there is a change and not ``accept``, or one that a checkpoint does not allow.
    """
    changed = changes(directory, config)
    if not changed:
        return []
    listed = ", ".join(f"{key} ({_short(old)}, now {_short(new)})" for key, old, new in changed)
    if not accept:
        raise CheckpointError(
            f"{directory.path} began with another configuration: {listed}. Put it back, or resume with --change, which "
            "records the change and the step"
        )
    fixed = [key for key, old, new in changed if key.startswith(FIXED) or {old, new} & BY_METRIC]
    if fixed:
        raise CheckpointError(
            f"{', '.join(fixed)} cannot be changed in the middle of a run, because checkpoints depend on it: start a new "
            f"run, with --model {directory.path} to train its model further"
        )
    checkpoint = last_checkpoint(directory.checkpoints)
    if checkpoint is None and directory.status == "finished":
        raise CheckpointError(f"{directory.path} is finished and has no checkpoint to resume from: start a new run")
    step = step_of(checkpoint) if checkpoint else 0
    return [{"step": step, "key": key, "from": old, "to": new} for key, old, new in changed]


def _effective(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return every key of a recorded configuration, those that a later version added with their defaults."""
    with suppress(ValidationError):  # a key that this version no longer has
        values = RunConfig.model_validate(values).model_dump(mode="json")
    return dotted(values)


def _value(values: Mapping[str, Any], key: str, config: RunConfig) -> Any:
    """Return a key's value, or the default that holds where it is not set."""
    if key in values:
        return values[key]
    section, _, name = key.partition(".")
    kind: Any = RunConfig.model_fields[section].annotation
    fields = (registry.load_method(config.method.name)[1].settings_type if section == "method" else kind).model_fields
    found = next((field for own, field in fields.items() if name in (own, field.alias)), None)
    if found is None and section == "train":
        return _argument_default(name)
    return None if found is None or found.is_required() else found.get_default(call_default_factory=True)


def _argument_default(key: str) -> Any:
    """Return the value of a key of ``train:`` that is not set: alignkit's default or that of ``TrainingArguments``."""
    from transformers import TrainingArguments

    found = DEFAULTS.get(key, getattr(TrainingArguments, key, None))
    return getattr(found, "value", found)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
