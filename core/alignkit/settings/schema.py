"""The JSON schema of a configuration, for editors."""

from __future__ import annotations

from typing import Any

from alignkit.config import SHORTHANDS, RunConfig
from alignkit.contract import registry
from alignkit.settings.train_keys import argument_schema


def schema(method: str) -> dict[str, Any]:
    """Return the JSON schema of a configuration for ``method``, its settings by their aliases."""
    _, method_type = registry.load_method(method)
    whole = RunConfig.model_json_schema()
    definitions = whole["$defs"]
    settings = method_type.settings_type.model_json_schema(by_alias=True)
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
