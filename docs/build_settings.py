"""Writes docs/settings.md (every key of every section, method, suite and reward) and docs/catalogue.md (every plugin) from the code."""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from alignkit.config import RunConfig
from alignkit.contract import registry
from alignkit.contract.checks import hook_names
from alignkit.contract.hooks import AlignSpecs
from alignkit.settings.train_keys import UNUSED, argument_fields, argument_types
from alignkit_commands.descriptions import description
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

HERE = Path(__file__).parent
WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    type(None): "null",
    dict: "mapping",
    list: "list",
}
GROUPS: Mapping[registry.Group, tuple[str, str]] = {
    "align.methods": ("Methods", "`align run --method NAME`, `method:`; settings: [settings.md](settings.md#methods)."),
    "align.losses": ("Losses", "Of a pair, for `--set loss=NAME` of the methods dpo and cpo: [losses.md](losses.md)."),
    "align.rewards": ("Rewards", "`method.reward` of methods that sample answers: [rlhf.md](rlhf.md)."),
    "align.suites": ("Suites", "`align eval --suite NAME`, `eval.suites`: [evaluation.md](evaluation.md)."),
    "align.results": ("Results of other tools", "Read by `align compare`: [evaluation.md](evaluation.md)."),
    "align.services": ("Services", "`train.report_to` and `run.services`."),
    "align.samplers": ("Samplers", "`method.sampler` of on-policy methods: [scale.md](scale.md)."),
    "align.schedulers": ("Schedulers", "`--scheduler NAME` of sweeps, atlases and pipelines: [scale.md](scale.md)."),
    "align.stages": ("Stages", "Kinds of stages of `align pipeline`: [rlhf.md](rlhf.md)."),
}


def settings_page() -> str:
    """Return every key with its type, default and meaning, as Markdown."""
    return "\n".join([*_head(), *_sections(), *_methods(), *_plugins()]) + "\n"


def _head() -> Iterator[str]:
    yield "# Settings"
    yield ""
    yield "Every key of a configuration file, with its type, its default and what it does. Generated from the code by `make docs`."
    yield ""
    yield "A key is written in YAML under its section, or on the command line as `--set SECTION.KEY=VALUE`; a setting of the method needs"
    yield "no section (`--set lambda=0.1`). `align schema METHOD` prints the same for editors ([editors.md](editors.md)), and"
    yield "`align run --dry-run` checks a configuration without training. Defaults of a method, of the demo and of a sampler may differ."
    yield ""


def _sections() -> Iterator[str]:
    for name, field in RunConfig.model_fields.items():
        kind = field.annotation
        if name == "method" or not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            continue
        yield f"## `{name}`"
        yield ""
        yield " ".join((kind.__doc__ or "").partition("\n\n")[0].split()).replace("``", "`")
        yield ""
        yield from _table(rows(kind, f"{name}."))
        if name == "train":
            yield "The other keys are those of `transformers.TrainingArguments`, except the ones that the engine sets:"
            yield ""
            yield from _table(train_rows())


def train_rows() -> list[tuple[str, str, str, str]]:
    """Return key, type, default and meaning of every argument of transformers that can be set."""
    found, types_of = [], argument_types()
    for field in argument_fields():
        sentence = " ".join(str(field.metadata.get("help", "")).split()).partition(". ")[0].rstrip(".")
        only = " (only for the methods trl-*)" if field.name in UNUSED else ""
        default = getattr(field.default, "value", field.default)
        found.append((f"train.{field.name}", kind_of(types_of[field.name]), _shown(default), sentence + only))
    return found


def _methods() -> Iterator[str]:
    yield "## Methods"
    yield ""
    yield "Settings of `method:`. On-policy methods also have a section for their sampler: [reference.md](reference.md#samplers)."
    yield ""
    for name, entry in registry.usable("align.methods").items():
        if not entry.built_in:
            continue
        yield f"### `{name}`"
        yield ""
        yield f"{description(entry.value)}."
        yield ""
        if name.startswith("trl-"):
            yield f"Its settings are those of TRL's configuration of that trainer: `align schema {name}`."
            yield ""
        else:
            yield from _table(rows(settings_type_of(entry), ""))


def settings_type_of(entry: registry.PluginEntry) -> type[BaseModel]:
    """Return the settings of a plugin, with those of every loss where it has a choice of losses."""
    settings_type = registry.load(entry).settings_type
    complete = getattr(settings_type, "documented", None)
    found: type[BaseModel] = complete() if complete else settings_type
    return found


def _plugins() -> Iterator[str]:
    groups: Mapping[registry.Group, tuple[str, str]] = {
        "align.suites": ("Suites", "Settings of `eval.settings.NAME`, or `align eval --set NAME.KEY=VALUE`."),
        "align.rewards": ("Rewards", "Settings of one reward: `reward: {name: NAME, weight: 1, KEY: VALUE}`."),
        "align.schedulers": ("Schedulers", "Settings of `--scheduler NAME`: `--scheduler-set KEY=VALUE`."),
        "align.stages": ("Stages", "Settings of a stage of a pipeline, beside `name` and `stage`."),
    }
    for group, (title, about) in groups.items():
        yield f"## {title}"
        yield ""
        yield about
        yield ""
        for name, entry in registry.usable(group).items():
            settings_type = getattr(registry.load(entry), "settings_type", None) if entry.built_in else None
            if settings_type is not None:
                yield f"### `{name}` ({title.lower().removesuffix('s')})"
                yield ""
                yield f"{description(entry.value)}."
                yield ""
                yield from _table(rows(settings_type, ""))


def rows(model: type[BaseModel], prefix: str) -> list[tuple[str, str, str, str]]:
    """Return key, type, default and meaning of every field of a model, and of the models in it."""
    found = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        default = field.default if field.default_factory is None else field.default_factory()  # type: ignore[call-arg]
        inner = _model_in(field.annotation)
        shown = (
            "required" if default is PydanticUndefined else "" if isinstance(default, BaseModel) else _shown(default)
        )
        also = f" (also `{name}`)" if field.alias and field.alias != name and not prefix else ""
        found.append((key, kind_of(field.annotation), shown, f"{field.description or ''}{also}"))
        if inner is not None:
            listed = get_origin(field.annotation) is list
            found += rows(inner, f"{key}{'[]' if listed else ''}.")
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = (_model_in(part) for part in get_args(annotation))
    return next((model for model in models if model is not None), None)


def kind_of(annotation: Any) -> str:
    """Return a type in words: ``whole number or null``, ``one of a, b``."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(parts[0])
    if origin is Literal:
        return ", ".join(f"`{part}`" if isinstance(part, str) else str(part).lower() for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind_of(part) for part in parts))
    if origin in (list, dict):
        return f"{WORDS[origin]} of {kind_of(parts[-1])}" if parts[-1] is not Any else WORDS[origin]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return WORDS.get(annotation, "section")


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if value in ("", [], {}):
        return "none"
    text = (
        str(value).lower()
        if isinstance(value, bool)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )
    return f"`{text}`"


def _table(lines: list[tuple[str, str, str, str]]) -> Iterator[str]:
    if not lines:
        yield "No settings."
    else:
        yield "| key | type | default | meaning |"
        yield "|---|---|---|---|"
    for key, *cells in lines:
        yield f"| `{key}` | {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def catalogue_page() -> str:
    """Return every installed plugin, command and hook with one sentence, as Markdown."""
    lines = [
        "# Catalogue",
        "",
        "What is installed with alignkit, with one sentence each. Generated from the code by `make docs`.",
        "",
    ]
    lines += [
        "## Commands",
        "",
        "`align COMMAND --help` lists the options.",
        "",
        "| command | what it does |",
        "|---|---|",
    ]
    for name, entry in registry.usable("align.commands").items():
        lines.append(f"| `align {name}` | {registry.load(entry).summary} |")
    for group, (title, about) in GROUPS.items():
        lines += ["", f"## {title}", "", about, "", "| name | what it does |", "|---|---|"]
        for name, entry in registry.usable(group).items():
            lines += (
                [f"| `{name}` | {description(entry.value).replace('|', chr(92) + '|')} |"] if entry.built_in else []
            )
    lines += [
        "",
        "## Hooks",
        "",
        "What a method or a service may implement: [plugins.md](plugins.md), [reference.md](reference.md#hooks).",
        "",
    ]
    lines += ["| hook | |", "|---|---|"]
    for name in hook_names():
        sentence = " ".join((getattr(AlignSpecs, name).__doc__ or "").partition("\n\n")[0].split()).replace("``", "`")
        lines.append(f"| `{name}` | {sentence.replace('|', chr(92) + '|')} |")
    lines += [
        "",
        "## Metrics",
        "",
        "[metrics.md](metrics.md) says what every metric means, its unit and its direction.",
        "",
    ]
    return "\n".join(lines)


def write() -> None:
    """Write both pages."""
    (HERE / "settings.md").write_text(settings_page(), encoding="utf-8")
    (HERE / "catalogue.md").write_text(catalogue_page(), encoding="utf-8")


if __name__ == "__main__":
    write()
