"""The schemas of what plugins and transformers add to a configuration: methods, suites, rewards, and the keys of ``train:``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from alignkit.contract import registry
from alignkit.errors import PluginError
from alignkit.settings.train_keys import (
    AT_LEAST,
    BELOW_ONE,
    POSITIVE,
    argument_fields,
    argument_types,
    choices_of,
)
from pydantic import BaseModel, ConfigDict, TypeAdapter

from alignkit_eval.schemas.accepted import Accepted, Definitions, Schema, number, with_field_names

NO_LOSS = "-"
"""Key of the settings of a method without those of its losses."""


def names_of(group: registry.Group) -> Schema:
    """Return the schema of the name of an installed plugin, with or without its distribution."""
    found = registry.usable(group)
    return {"type": "string", "enum": list(dict.fromkeys([*found, *(entry.qualified for entry in found.values())]))}


def method_section(name: str, definitions: Definitions) -> Schema:
    """Return the schema of ``method:`` for one method; raises :class:`PluginError` if it cannot be loaded."""
    entry, method_type = registry.load_method(name)
    complete = settings_types(method_type.settings_type)
    section = with_field_names(definitions.schema_of(complete[""]), complete[""])
    word: Schema = {"enum": [entry.name, entry.qualified], "description": "the method"}
    section["properties"] = {"name": word} | section.get("properties", {})
    section["required"] = ["name", *section.get("required", [])]
    rules = [*section.get("allOf", []), *_of_losses(complete, section, definitions), *_of_samplers(section)]
    return section | ({"allOf": rules} if rules else {})


def settings_types(settings_type: Any) -> dict[str, Any]:
    """Return the settings of a method: ``""`` with those of every loss and sampler, ``NAME`` with those of one loss or of none."""
    if not hasattr(settings_type, "with_sections"):
        return {"": settings_type}
    found: dict[str, Any] = {}
    whole = settings_type
    if documented := getattr(settings_type, "documented", None):
        whole = documented()
        for name in registry.usable("align.losses"):
            with suppress(PluginError):
                if settings_type.misfit(name, registry.load(registry.find("align.losses", name))) is None:
                    found[name] = settings_type.with_sections({"loss": name})
        found[NO_LOSS] = settings_type.with_sections({"loss": {}})
    if "sampler" in settings_type.model_fields:
        for name in registry.usable("align.samplers"):
            with suppress(PluginError):
                whole = _also(whole, settings_type.with_sections({"sampler": name}))
    return {"": whole, **found}


def _also(whole: Any, other: Any) -> Any:
    """Return the model with the fields that another one has beyond it."""
    from pydantic import create_model

    more: dict[str, Any] = {
        key: (info.annotation, info) for key, info in other.model_fields.items() if key not in whole.model_fields
    }
    return create_model(whole.__name__, __base__=whole, __module__=whole.__module__, **more) if more else whole


def _of_losses(types: Mapping[str, Any], section: Schema, definitions: Definitions) -> Iterator[Schema]:
    """Yield what holds for each loss: the exact types of its settings, and no settings of others but at their neutral value."""
    losses = {name: definitions.schema_of(kind)["properties"] for name, kind in types.items() if name}
    if not losses:
        return
    of_method = {"name", *losses.pop(NO_LOSS)}
    own = [key for key in section["properties"] if key not in of_method]
    section["properties"]["loss"] |= {"anyOf": [{"type": "string", "enum": [*losses]}, _several(losses, own)]}
    neutral = _neutral_values(types)
    for name, keys in losses.items():
        chosen: Schema = {"properties": {"loss": {"const": name}}}
        if name != section["properties"]["loss"]["default"]:
            chosen["required"] = ["loss"]
        rest = {key: {"enum": neutral[key]} if key in neutral else False for key in own if key not in keys}
        yield {"if": chosen, "then": {"properties": {key: keys[key] for key in own if key in keys} | rest}}
    for key in own:
        several: Schema = {"required": [key, "loss"], "properties": {"loss": {"type": "object"}}}
        if key in neutral:
            several["properties"][key] = {"not": {"enum": neutral[key]}}
        takers = [{"required": [name]} for name, keys in losses.items() if key in keys]
        yield {"if": several, "then": {"properties": {"loss": {"anyOf": takers}}}}


def _several(losses: Mapping[str, Schema], own: Sequence[str]) -> Schema:
    """Return the schema of several losses, each with its weight, or its weight and settings."""
    weight = number("number", {"minimum": 0}) | {"description": "weight of the loss"}
    parts: Schema = {}
    for name, keys in losses.items():
        settings = {key: {"anyOf": [schema, {"type": "null"}]} for key, schema in keys.items() if key in own}
        mapping = {
            "type": "object",
            "properties": {"weight": weight, **settings},
            "additionalProperties": False,
            "minProperties": 1,
        }
        parts[name] = {"anyOf": [weight, mapping]}
    return {"type": "object", "properties": parts, "additionalProperties": False, "minProperties": 1}


def _neutral_values(types: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values at which a setting of one loss is accepted for the others, by key."""
    found: dict[str, list[Any]] = {}
    for kind in (kind for name, kind in types.items() if name not in ("", NO_LOSS)):
        for key, info in kind.model_fields.items():
            extra = info.json_schema_extra
            if isinstance(extra, dict) and "neutral" in extra:
                for name in {key, info.alias or key}:
                    found.setdefault(name, []).append(extra["neutral"])
    return {key: list(dict.fromkeys(values)) for key, values in found.items()}


def _of_samplers(section: Schema) -> Iterator[Schema]:
    """Yield the rule that the settings of a sampler need the sampler."""
    if "sampler" not in section["properties"]:
        return
    samplers = names_of("align.samplers")
    section["properties"]["sampler"] |= {"enum": ["model", *samplers["enum"]]}
    for name, entry in registry.usable("align.samplers").items():
        if name in section["properties"]:
            chosen = {"required": ["sampler"], "properties": {"sampler": {"enum": [name, entry.qualified]}}}
            yield {"if": {"required": [name]}, "then": chosen}


def plugin_settings(group: registry.Group, definitions: Definitions) -> dict[str, Schema]:
    """Return the schema of the settings of every plugin of a group that can be loaded and has settings, by name."""
    found = {}
    for name, entry in registry.usable(group).items():
        with suppress(PluginError):
            settings_type = getattr(registry.load(entry), "settings_type", None)
            if isinstance(settings_type, type) and issubclass(settings_type, BaseModel):
                found[name] = definitions.schema_of(settings_type)
    return found


def reward_entry(definitions: Definitions) -> Schema:
    """Return the schema of one reward: a mapping with its name, its weight, and the settings of the reward of that name."""
    plain: Schema = definitions.found["RewardSpec"]
    rules = []
    for name, settings in plugin_settings("align.rewards", definitions).items():
        known = [*plain["properties"], *settings.get("properties", {})]
        exact: Schema = {"properties": settings.get("properties", {}), "propertyNames": {"enum": known}}
        exact |= {key: settings[key] for key in ("required", "allOf") if key in settings}
        rules.append({"if": {"required": ["name"], "properties": {"name": {"const": name}}}, "then": exact})
    plain["properties"]["name"] |= {"anyOf": [names_of("align.rewards"), {"type": "string"}]}
    return plain | {"allOf": rules}


def train_keys(own_trainer: Sequence[str]) -> dict[str, Schema]:
    """Return the schema of every key of ``train:`` that goes to ``transformers.TrainingArguments``.

    ``own_trainer``: the keys that only methods with a trainer of their own use; the others refuse them.
    """
    types, found = argument_types(), {}
    for field in argument_fields():
        sentence = " ".join(str(field.metadata.get("help", "")).split()).partition(". ")[0].rstrip(".")
        of_some = " (only for methods with a trainer of their own)" if field.name in own_trainer else ""
        found[field.name] = _bounded(field.name, _argument(types[field.name])) | {"description": sentence + of_some}
    return found


def _argument(annotation: Any) -> Schema:
    adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))
    made = adapter.json_schema(schema_generator=Accepted)
    definitions = made.pop("$defs", {})
    parts = [_inlined(part, definitions) for part in made.get("anyOf", [made])]
    if choices := choices_of(annotation):
        parts = [{"enum": choices}, *(part for part in parts if part.get("type") != "string")]
    return parts[0] if len(parts) == 1 else {"anyOf": parts}


def _bounded(key: str, schema: Schema) -> Schema:
    """Return the schema with the bounds of the key's numbers."""
    if "anyOf" in schema:
        return {"anyOf": [_bounded(key, part) for part in schema["anyOf"]]}
    kinds = schema.get("type", "")
    kind = kinds[0] if isinstance(kinds, list) else kinds
    if kind not in ("integer", "number"):
        return schema
    limits: Schema = {"exclusiveMinimum": 0} if key in POSITIVE else {"minimum": AT_LEAST.get(key, 0)}
    limits |= {"exclusiveMaximum": 1} if key in BELOW_ONE else {}
    made = number(kind, limits)
    return made | (
        {"not": {"enum": [0, "0"]}, "pattern": r"^\s*([+]?[0-9]|-1\s*$)[0-9_.]*\s*$"} if key == "max_steps" else {}
    )


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Return ``schema`` with its references replaced by their definitions."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return dict(definitions[schema["$ref"].rpartition("/")[2]])
        return {key: _inlined(value, definitions) for key, value in schema.items()}
    return [_inlined(item, definitions) for item in schema] if isinstance(schema, list) else schema
