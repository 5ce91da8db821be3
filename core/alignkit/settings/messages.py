"""Pydantic validation with one-sentence errors: origin, key, expected value, given value."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from alignkit.errors import ConfigError, shortened
from alignkit.settings.hints import VALUES, did_you_mean, known_keys
from alignkit.settings.layers import KeyPath, Layer

LARGEST = (2**32 - 1, 1e12)
"""Largest magnitude of an integer and of another number; libraries overflow or never end with far larger ones."""

ModelT = TypeVar("ModelT", bound=BaseModel)

_LISTED = " (align schema METHOD lists all keys)"

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "finite": "a finite number",
    "none": "null",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def validate(model_type: type[ModelT], values: Mapping[str, Any], layer: Layer, prefix: KeyPath = ()) -> ModelT:
    """Validate ``values`` (at ``prefix`` of ``layer``); raises :class:`ConfigError` for the first error."""
    refuse_numbers(values, layer, prefix)
    try:
        model = model_type.model_validate(dict(values))
    except ValidationError as error:
        raise _config_error(error, model_type, values, layer, prefix) from error
    except Exception as error:  # a validator of a plugin that has a bug
        said = f"{model_type.__module__}.{model_type.__qualname__} cannot read these values, which is a fault of that class"
        raise problem_at(layer, prefix, f"{'.'.join(prefix) or 'settings'}: {said}: {error!r:.200}") from error
    _refuse_bools(values, model, layer, prefix)
    refuse_numbers(model.model_dump(by_alias=True, exclude_unset=True), layer, prefix)  # numbers given as text
    return model


def refuse_numbers(values: Any, layer: Layer, path: KeyPath) -> None:
    """Raise :class:`ConfigError` if any number in ``values`` is NaN, infinite or of an absurd size."""
    if isinstance(values, Mapping | list | tuple):
        for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
            refuse_numbers(value, layer, (*path, str(key)))
    elif isinstance(values, float) and not math.isfinite(values):
        raise wrong_value(layer, path, "a finite number", values)
    elif isinstance(values, int | float) and abs(values) > (largest := LARGEST[type(values) is float]):
        bound = f"at most {largest:,.0f}" if values > 0 else f"at least -{largest:,.0f}"
        raise wrong_value(layer, path, bound, values)


def _refuse_bools(given: Any, read: Any, layer: Layer, path: KeyPath) -> None:
    """Raise :class:`ConfigError` if true or false was given for a number (pydantic converts them to 1 and 0)."""
    if isinstance(given, Mapping) and isinstance(read, BaseModel):
        for name, field in type(read).model_fields.items():
            key = field.alias if field.alias and field.alias in given else name
            _refuse_bools(given.get(key), getattr(read, name), layer, (*path, key))
    elif isinstance(given, Mapping) and isinstance(read, Mapping):
        for key, value in given.items():
            _refuse_bools(value, read.get(key), layer, (*path, key))
    elif isinstance(given, list) and isinstance(read, list):
        for number, pair in enumerate(zip(given, read, strict=False)):
            _refuse_bools(*pair, layer, (*path, str(number)))
    elif isinstance(given, bool) and isinstance(read, int | float) and not isinstance(read, bool):
        raise wrong_value(layer, path, "a number", given)


def wrong_value(layer: Layer, path: KeyPath, expected: str, given: Any) -> ConfigError:
    """Return ``orpo.yaml:7: train.learning_rate must be a number, not "fast"``."""
    ours = VALUES.get(str(given).lower(), [])
    hint = next((f": here it is called {name}" for name in ours if name in expected.replace(",", "").split()), "")
    return problem_at(layer, path, f"{'.'.join(path)} must be {expected}, not {_shown(given)}{hint}")


def unknown_key(layer: Layer, path: KeyPath, known: list[str]) -> ConfigError:
    """Return ``orpo.yaml:7: unknown key train.learing_rate, did you mean "learning_rate"?``."""
    return problem_at(layer, path, f"unknown key {'.'.join(path)}{did_you_mean(path[-1], known) or _LISTED}")


def problem_at(layer: Layer, path: KeyPath, message: str) -> ConfigError:
    """Return the error, prefixed with the origin of ``path``."""
    place = layer.place(path)
    return ConfigError(f"{place}: {message}" if place else message)


def expectation(error: ErrorDetails) -> str:
    """Return the expectation in a pydantic error: ``a number``, ``at least 0``, ``one of ...``."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        word, key = _BOUNDS[kind]
        return f"{word} {context[key]:g}" if isinstance(context[key], float) else f"{word} {context[key]}"
    if kind in ("literal_error", "enum"):
        expected = context["expected"].replace("'", "")
        return f"one of {expected}" if " " in expected else expected
    first = kind.partition("_")[0]
    if first in _EXPECTED and kind.endswith(("_type", "_parsing", "_number", "_from_float", "_required")):
        return _EXPECTED[first]
    return error["msg"].removeprefix("Input should be ")


def _config_error(
    error: ValidationError, model_type: type[BaseModel], values: Mapping[str, Any], layer: Layer, prefix: KeyPath
) -> ConfigError:
    first, *_ = details = error.errors(include_url=False)
    inner = _key_path(first, values)
    path = (*prefix, *inner)
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        return unknown_key(layer, path, known_keys(_model_at(model_type, inner[:-1])))
    if first["type"] == "missing":
        return problem_at(layer, path, f"{name} is missing")
    if first["type"] in ("value_error", "assertion_error"):
        message = str(first["ctx"]["error"])
        key = (*path, message.partition(" ")[0])  # the key that the message begins with, where it was given
        return problem_at(layer, key, f"{name}: {message}" if name else message)
    # A union yields one error per member, all for the same key.
    same = [expectation(detail) for detail in details if _key_path(detail, values) == inner]
    if inner and (section := _model_at(model_type, inner)) is not _model_at(model_type, inner[:-1]):
        keys = ", ".join(known_keys(section)[:3])
        same = [f"a mapping of keys ({keys}, ...)" if each == "a mapping" else each for each in same]
    return wrong_value(layer, path, " or ".join(dict.fromkeys(same)), first["input"])


def _key_path(error: ErrorDetails, values: Mapping[str, Any]) -> KeyPath:
    """Return the error's location as keys of the input, without the union members that pydantic inserts."""
    path: list[str] = []
    here: Any = values
    for i, part in enumerate(error["loc"], start=1):
        missing = error["type"] == "missing" and i == len(error["loc"])
        if isinstance(here, Mapping) and (part in here or missing):
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            continue
        path.append(str(part))
    return tuple(path)


def _model_at(model_type: type[BaseModel], path: KeyPath) -> type[BaseModel]:
    for key in path:
        fields = (field for name, field in model_type.model_fields.items() if key in (name, field.alias))
        model_type = next((model for field in fields for model in _models_in(field.annotation)), model_type)
    return model_type


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _shown(value: Any, limit: int = 60) -> str:
    try:
        return shortened(json.dumps(value, default=repr, ensure_ascii=False), limit)
    except ValueError:  # Python refuses to write an integer of so many digits
        return "an integer of thousands of digits"
