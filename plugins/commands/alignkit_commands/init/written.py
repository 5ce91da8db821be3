"""A configuration as YAML in which every key is explained."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.config import RunConfig
from alignkit.contract import registry
from alignkit.settings import yaml_files
from alignkit.settings.train_keys import argument_fields
from pydantic import BaseModel

SECTIONS = {
    "method": "the method and its settings",
    "model": "the model to train",
    "data": "the training and held-out rows",
    "train": "optimisation",
    "eval": "evaluation before, during and after training",
    "run": "the run directory, the seed, the hardware",
}


def written(values: Mapping[str, Any], head: str = "") -> str:
    """Return settings as YAML, each with its description above it; ``head`` comes first."""
    lines = [*head.splitlines()]
    for section in [name for name in SECTIONS if values.get(name)]:
        lines += ["", f"{section}:  # {SECTIONS[section]}", *_keys(values[section], (section,), values)]
    return "\n".join(lines) + "\n"


def _keys(values: Mapping[str, Any], path: tuple[str, ...], whole: Mapping[str, Any]) -> Iterator[str]:
    indent = "  " * len(path)
    for key, value in values.items():
        here = (*path, key)
        if about := description(here, whole):
            yield from textwrap.wrap(about, 116, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        model = _model(here)
        if isinstance(value, Mapping) and value and model is not None:
            yield f"{indent}{key}:"
            yield from _keys(value, here, whole)
        else:
            yield from textwrap.indent(yaml_files.write({key: value}).rstrip("\n"), indent).splitlines()


def description(path: tuple[str, ...], whole: Mapping[str, Any]) -> str:
    """Return the description of a key; empty if there is none."""
    section, *rest = path
    model: Any = RunConfig.model_fields[section].annotation
    if section == "method" and rest != ["name"]:
        model = registry.load_method(whole["method"]["name"])[1].settings_type
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        return str(fields[rest[0]].description or "") if rest[0] in fields else ""
    model = _model(path[:-1])
    if model is not None and rest[-1] in model.model_fields:
        return str(model.model_fields[rest[-1]].description or "")
    for field in argument_fields() if section == "train" else ():
        if field.name == rest[0]:
            return " ".join(str(field.metadata.get("help", "")).split()).partition(". ")[0].rstrip(".")
    return ""


def _model(path: tuple[str, ...]) -> type[BaseModel] | None:
    """Return the model of the section at ``path``; None if it is no section."""
    model: Any = RunConfig
    for key in path:
        field = model.model_fields.get(key)
        parts = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)
        if model is None:
            return None
    return model  # type: ignore[no-any-return]
