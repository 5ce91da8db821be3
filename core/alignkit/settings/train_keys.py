"""The keys of ``train:``: the fields of ``transformers.TrainingArguments``, except those the engine sets."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, get_args

from alignkit.config import TrainConfig
from alignkit.errors import shortened, suggest
from alignkit.settings.hints import known_keys, read_table
from alignkit.settings.layers import Layer
from alignkit.settings.messages import expectation, problem_at, refuse_numbers, unknown_key, wrong_value

OWNED: Mapping[str, str] = {key: reasons[0] for key, reasons in read_table("owned_keys").items()}
"""Key that cannot be set -> the reason, or what to use instead."""

UNUSED: Mapping[str, str] = {
    "per_device_eval_batch_size": "held-out rows are scored in batches of train.tokens_per_micro_batch tokens",
    "torch_empty_cache_steps": "memory is bounded by train.tokens_per_micro_batch",
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "held-out rows are scored in the precision of training"),
}
"""Keys without effect on the engine's trainer -> the reason; a method that brings its own trainer may use them."""

AT_LEAST: Mapping[str, float] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), 1),
    **dict.fromkeys(("gradient_accumulation_steps", "save_total_limit"), 1),
    "max_steps": -1,
}
"""Lower bounds of numbers; it is 0 for the others."""

POSITIVE = ("num_train_epochs", "logging_steps", "eval_steps", "save_steps", "ddp_timeout", "torch_empty_cache_steps")

_WIDER: Mapping[str, Any] = {"fsdp": bool | str | None}  # its annotation is for transformers' command line

BELOW_ONE = ("adam_beta1", "adam_beta2")


def check_train(train: TrainConfig, layer: Layer, *, own_trainer: bool = False) -> dict[str, Any]:
    """Return the values for ``TrainingArguments``, converted to the types of its fields.

    ``own_trainer``: whether the method brings its own trainer.

    Raises :class:`~alignkit.errors.ConfigError` for a key that is unknown or set by the engine, and for a value of the
    wrong type. Imports transformers only if there is a key to check.
    """
    arguments = train.arguments
    refused = OWNED if own_trainer else {**OWNED, **UNUSED}
    for key in arguments:
        if key in refused:
            raise problem_at(layer, ("train", key), f"train.{key} cannot be set: {refused[key]}")
    if not arguments:
        return {}
    fields = argument_types()
    for key in arguments:
        if key not in fields:
            raise unknown_key(layer, ("train", key), [*fields, *known_keys(TrainConfig)])
    return {key: _checked(key, value, fields[key], layer) for key, value in arguments.items()}


def argument_types() -> dict[str, Any]:
    """Return the type of every field of ``TrainingArguments`` that can be set."""
    return {field.name: _WIDER.get(field.name, field.type) for field in argument_fields()}


def argument_fields() -> list[dataclasses.Field[Any]]:
    """Return the fields of ``TrainingArguments`` that can be set."""
    from transformers import TrainingArguments

    return [field for field in dataclasses.fields(TrainingArguments) if field.init and field.name not in OWNED]


def _checked(key: str, value: Any, annotation: Any, layer: Layer) -> Any:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    path = ("train", key)
    choices = choices_of(annotation)
    if choices and isinstance(value, str) and not isinstance(value, enum.Enum):
        if value not in choices:
            hint = suggest(value, choices)
            raise problem_at(
                layer, path, f"train.{key} cannot be {value!r}{hint} (one of {shortened(', '.join(choices), 200)})"
            )
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
    refuse_numbers(checked, layer, path)
    if isinstance(checked, int | float) and checked < (least := AT_LEAST.get(key, 0)):
        raise wrong_value(layer, path, f"at least {least}", value)
    if checked == 0 and (key in POSITIVE or key == "max_steps"):  # transformers reads max_steps 0 as unset
        raise wrong_value(layer, path, "more than 0", value)
    if key in BELOW_ONE and checked >= 1:
        raise wrong_value(layer, path, "less than 1", value)
    return checked.value if isinstance(checked, enum.Enum) else checked


def choices_of(annotation: Any) -> list[str]:
    """Return the values of the enumeration in ``annotation``; empty if it has none."""
    parts = [part for part in (annotation, *get_args(annotation)) if isinstance(part, type)]
    return [str(member.value) for part in parts if issubclass(part, enum.Enum) for member in part]
