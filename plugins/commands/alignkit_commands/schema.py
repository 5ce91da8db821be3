"""The JSON schema of a configuration, for editors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from alignkit.config import SHORTHANDS, RunConfig
from alignkit.contract import registry
from alignkit.errors import PluginError
from alignkit.settings.train_keys import argument_fields, argument_types


def schema(method: str) -> dict[str, Any]:
    """Return the JSON schema of a configuration for ``method``, its settings by their aliases."""
    _, method_type = registry.load_method(method)
    whole = RunConfig.model_json_schema()
    definitions = whole["$defs"]
    complete = getattr(method_type.settings_type, "documented", None)  # a method with a choice of losses
    settings_type = complete() if complete else _with_samplers(method_type.settings_type)
    settings = settings_type.model_json_schema(by_alias=True)
    definitions |= settings.pop("$defs", {})
    section = definitions["MethodConfig"]
    section["properties"] = {"name": {"const": method, "description": "the method"}} | settings.get("properties", {})
    section["required"] = ["name", *settings.get("required", [])]
    section["additionalProperties"] = False
    train = definitions["TrainConfig"]
    train["properties"] |= argument_schema()
    train["additionalProperties"] = False
    for name, key in SHORTHANDS.items():
        field = definitions[f"{name.capitalize()}Config"]["properties"][key]
        word = field if name == "method" else {"type": "string", "description": field["description"]}
        whole["properties"][name] = {"anyOf": [word, whole["properties"][name]]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | whole | {"title": f"align run: {method}"}


def _with_samplers(settings_type: Any) -> Any:
    """Return a method's settings with the section of every sampler that can be loaded and has settings."""
    for name in registry.usable("align.samplers") if hasattr(settings_type, "with_sections") else ():
        with suppress(PluginError):
            settings_type = settings_type.with_sections({"sampler": name})
    return settings_type


def argument_schema() -> dict[str, Any]:
    """Return the JSON schema of every field of ``TrainingArguments`` that can be set."""
    from pydantic import TypeAdapter

    schemas: dict[str, Any] = {}
    types = argument_types()
    for field in argument_fields():
        annotation: Any = types[field.name]
        schema = TypeAdapter(annotation).json_schema()
        choices = schema.pop("$defs", {})
        sentence = " ".join(str(field.metadata.get("help", "")).split()).partition(". ")[0].rstrip(".")
        schemas[field.name] = _inlined(schema, choices) | {"description": sentence}
    return schemas


def _inlined(schema: Any, choices: Mapping[str, Any]) -> Any:
    """Return ``schema`` with its references replaced by their definitions."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return choices[schema["$ref"].rpartition("/")[2]]
        return {key: _inlined(value, choices) for key, value in schema.items()}
    return [_inlined(item, choices) for item in schema] if isinstance(schema, list) else schema
