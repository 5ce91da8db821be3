"""The keys of ``train:``: the fields of ``transformers.TrainingArguments``, except those the engine sets."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, get_args

from alignkit.config import TrainConfig
from alignkit.errors import suggest
from alignkit.settings.layers import Layer
from alignkit.settings.messages import expectation, known_keys, problem_at, unknown_key, wrong_value

_MICRO_BATCHES = "the engine divides a step into micro-batches by train.tokens_per_micro_batch"
_EXPORT = "publish the model from the run directory"
_LAUNCHER = "it is set by the launcher (accelerate launch, torchrun)"
_OWN_ROWS = "the engine builds its own batches"
_NO_LOADER = "rows are tokenised before training, so no data loader is needed"
_OWN_EVALUATION = "the engine computes the evaluation loss itself; use eval.suites for metrics"

OWNED: Mapping[str, str] = {
    "output_dir": "use run.output and run.name (--output, --name)",
    "run_name": "use run.name (--name)",
    "seed": "use run.seed (--seed)",
    "data_seed": "use run.seed (--seed)",
    "resume_from_checkpoint": "use --resume",
    "restore_callback_states_from_checkpoint": "use --resume",
    "ignore_data_skip": "a resumed run always continues with the next rows",
    "do_train": "a run always trains; use --dry-run to stop before training",
    "do_eval": "use train.eval_strategy",
    "do_predict": "use eval.samples",
    "remove_unused_columns": _OWN_ROWS,
    "label_names": _OWN_ROWS,
    "length_column_name": _OWN_ROWS,
    "train_sampling_strategy": _OWN_ROWS + ", in an order determined by run.seed and the data section",
    "group_by_length": _OWN_ROWS + " without padding, so grouping by length is not needed",
    "past_index": "the engine keeps no state between batches",
    "dataloader_drop_last": _OWN_ROWS + "; the last step of an epoch may be short",
    "dataloader_num_workers": _NO_LOADER,
    "dataloader_pin_memory": _NO_LOADER,
    "dataloader_persistent_workers": _NO_LOADER,
    "dataloader_prefetch_factor": _NO_LOADER,
    "dataloader_multiprocessing_context": _NO_LOADER,
    "dataloader_in_order": _NO_LOADER,
    "disable_tqdm": "progress is shown if and only if stderr is a terminal",
    "ddp_find_unused_parameters": "every parameter is used in every step",
    "auto_find_batch_size": _MICRO_BATCHES,
    "average_tokens_across_devices": "the engine always divides by the counts of all devices",
    "label_smoothing_factor": "the method defines the loss; use the method's settings",
    "include_num_input_tokens_seen": "tokens are always counted and logged",
    "logging_nan_inf_filter": "a non-finite loss stops the run",
    "prediction_loss_only": _OWN_EVALUATION,
    "include_for_metrics": _OWN_EVALUATION,
    "batch_eval_metrics": _OWN_EVALUATION,
    "eval_do_concat_batches": _OWN_EVALUATION,
    "eval_use_gather_object": _OWN_EVALUATION,
    "eval_accumulation_steps": _OWN_EVALUATION,
    "neftune_noise_alpha": "its noise would depend on how a step is divided into micro-batches",
    "use_liger_kernel": "the scorer already computes the head in chunks",
    "liger_kernel_config": "the scorer already computes the head in chunks",
    "enable_jit_checkpoint": "a checkpoint is always saved when the run is interrupted",
    "parallelism_config": "only data parallelism is supported (DDP, FSDP, DeepSpeed)",
    "local_rank": _LAUNCHER,
    "push_to_hub": _EXPORT,
    "hub_token": _EXPORT,
    "hub_private_repo": _EXPORT,
    "hub_model_id": _EXPORT,
    "hub_strategy": _EXPORT,
    "hub_always_push": _EXPORT,
    "hub_revision": _EXPORT,
}
"""Key that cannot be set -> the reason, or what to use instead."""

RENAMED: Mapping[str, str] = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps (a value below 1 is a share of all steps)",
    "no_cuda": "use_cpu",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
}
"""Names from other libraries and earlier versions -> current names."""

_AT_LEAST: Mapping[str, float] = {
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "warmup_steps": 0,
    "num_train_epochs": 0,
    "max_steps": -1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "save_total_limit": 1,
}
"""Lower bounds that TrainingArguments does not check."""


def check_train(train: TrainConfig, layer: Layer) -> dict[str, Any]:
    """Return the values for ``TrainingArguments``, converted to the types of its fields.

    Raises :class:`~alignkit.errors.ConfigError` for a key that is unknown or set by the engine, and for a value of the
    wrong type. Imports transformers only if there is a key to check.
    """
    arguments = train.arguments
    for key in arguments:
        if key in OWNED:
            raise problem_at(layer, ("train", key), f"train.{key} cannot be set: {OWNED[key]}")
        if key in RENAMED:
            raise problem_at(layer, ("train", key), f"unknown key train.{key}: use {RENAMED[key]}")
    if not arguments:
        return {}
    fields = argument_types()
    known = [*fields, *known_keys(TrainConfig)]
    for key in arguments:
        if key not in fields:
            raise unknown_key(layer, ("train", key), known)
    return {key: _checked(key, value, fields[key], layer) for key, value in arguments.items()}


def argument_types() -> dict[str, Any]:
    """Return the type of every field of ``TrainingArguments`` that can be set."""
    return {field.name: field.type for field in _fields() if field.name not in OWNED}


def argument_schema() -> dict[str, Any]:
    """Return the JSON schema of every field of ``TrainingArguments`` that can be set."""
    from pydantic import TypeAdapter

    schemas: dict[str, Any] = {}
    for field in _fields():
        if field.name not in OWNED:
            annotation: Any = field.type
            schema = TypeAdapter(annotation).json_schema()
            choices = schema.pop("$defs", {})
            schemas[field.name] = _inlined(schema, choices) | {"description": _first_sentence(field)}
    return schemas


def _fields() -> list[dataclasses.Field[Any]]:
    from transformers import TrainingArguments

    return [field for field in dataclasses.fields(TrainingArguments) if field.init]


def _checked(key: str, value: Any, annotation: Any, layer: Layer) -> Any:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    path = ("train", key)
    choices = _choices(annotation)
    if choices and isinstance(value, str) and not isinstance(value, enum.Enum):
        if value not in choices:
            hint = suggest(value, choices)
            raise problem_at(layer, path, f"train.{key} cannot be {value!r}{hint} (one of {', '.join(choices)})")
        return value
    if list[str] in get_args(annotation) and isinstance(value, str) and "," in value:
        value = [word.strip() for word in value.split(",")]
    try:
        checked = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        expected = dict.fromkeys(expectation(detail) for detail in error.errors(include_url=False))
        raise wrong_value(layer, path, " or ".join(expected), value) from error
    if isinstance(value, bool) and not isinstance(checked, bool):  # pydantic reads true as 1
        raise wrong_value(layer, path, "a number", value)
    if key in _AT_LEAST and checked is not None and checked < _AT_LEAST[key]:
        raise wrong_value(layer, path, f"at least {_AT_LEAST[key]}", value)
    return checked.value if isinstance(checked, enum.Enum) else checked


def _choices(annotation: Any) -> list[str]:
    """Return the values of the enumeration in ``annotation``; empty if it has none."""
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, enum.Enum):
            return [str(member.value) for member in part]
    return []


def _inlined(schema: Any, choices: Mapping[str, Any]) -> Any:
    """Return ``schema`` with its references replaced by their definitions."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return choices[schema["$ref"].rpartition("/")[2]]
        return {key: _inlined(value, choices) for key, value in schema.items()}
    return [_inlined(item, choices) for item in schema] if isinstance(schema, list) else schema


def _first_sentence(field: dataclasses.Field[Any]) -> str:
    text = " ".join(str(field.metadata.get("help", "")).split())
    return text.partition(". ")[0].rstrip(".")
