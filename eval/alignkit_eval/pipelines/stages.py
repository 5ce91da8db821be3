"""Pipeline files: their stages, the stages each depends on, and validated configurations."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignkit import RunConfig, settings
from alignkit.errors import ConfigError, suggest
from alignkit.settings.layers import SECTIONS, Layer
from alignkit.settings.yaml_files import read

Kind = Literal["train", "eval", "export"]

REFERENCE = "stage:"
"""Prefix of a value that refers to another stage's directory: ``reward: stage:reward``."""

_TOP = ("name", "output", "stages", "model", "data", "train", "eval", "compare", "run")
_OWN: Mapping[Kind, tuple[str, ...]] = {
    "train": ("name", "from", *SECTIONS),
    "eval": ("name", "eval", "baseline", "suites", "settings"),
    "export": ("name", "export", "merge", "merge_method", "weights", "density", "seed"),
}
_STAGES: Mapping[Kind, str] = {"train": "a training", "eval": "an eval", "export": "an export"}


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline file."""

    name: str
    kind: Kind
    values: Mapping[str, Any]
    """The stage's mapping in the file."""
    needs: tuple[str, ...]
    """Names of the stages it depends on."""
    place: str
    """Location in the file (file:line)."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file: shared sections, and stages in order."""

    file: Path
    name: str
    output: str
    shared: Layer
    stages: tuple[Stage, ...]
    places: Mapping[tuple[str, ...], str]

    def stage(self, name: str, option: str) -> Stage:
        """Return a stage by name; raises :class:`ConfigError` naming ``option`` if it is unknown."""
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise ConfigError(f"{option} {name}: unknown stage{suggest(name, names)} (stages: {', '.join(names)})")
        return self.stages[names.index(name)]

    def config(self, stage: Stage, directory: Path, sets: Sequence[str] = (), *, planned: bool = False) -> RunConfig:
        """Return a training stage's resolved configuration.

        ``planned=True`` validates it before the stages it depends on have run, without their models.
        """
        values = copy.deepcopy({key: value for key, value in stage.values.items() if key in SECTIONS})
        head = ("stages", str(self.stages.index(stage)))
        places = {path[2:]: place for path, place in self.places.items() if path[:2] == head}
        layer = Layer(values, places, default_place=stage.place).expanded()
        start = stage.values.get("from")
        if start is not None:
            if layer.get("model", "name") is not None:
                raise ConfigError(f"{stage.place}: stage {stage.name} has both from and model.name")
            if not planned:
                layer.put(("model", "name"), str(directory / start), stage.place)
        layer.values = substituted(layer.values, directory)
        own = Layer(default_place=str(self.file))
        own.put(("run", "output"), str(directory), stage.place)
        own.put(("run", "name"), stage.name, stage.place)
        shared = Layer(copy.deepcopy(self.shared.values), dict(self.shared.places), self.shared.default_place)
        return settings.resolve_layers([shared, layer, settings.from_sets(sets), own]).config


def read_pipeline(file: Path) -> Pipeline:
    """Read a pipeline file; raises :class:`ConfigError` with the line of an invalid key or value."""
    layer = read(file)
    for key in layer.values:
        if key not in _TOP:
            raise ConfigError(f"{layer.place((key,))}: unknown key {key}{suggest(key, list(_TOP))}")
    given = layer.values.get("stages")
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{layer.place(('stages',))}: a pipeline needs a list of stages")
    stages: list[Stage] = []
    for number, values in enumerate(given):
        place = layer.place(("stages", str(number)))
        stages.append(_stage(values, place, [stage.name for stage in stages]))
    shared = {key: value for key, value in layer.values.items() if key in SECTIONS}
    name = layer.values.get("name", file.stem)
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{layer.place(('name',))}: name must be a directory name")
    output = str(layer.values.get("output", "runs"))
    return Pipeline(file, name, output, Layer(shared, layer.places, str(file)), tuple(stages), layer.places)


def _stage(values: Any, place: str, before: Sequence[str]) -> Stage:
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: a stage must be a mapping with method, eval or export")
    kinds: list[Kind] = [kind for kind, key in (("train", "method"), ("export", "export")) if key in values]  # type: ignore[misc]
    if not kinds and "eval" in values:
        kinds = ["eval"]
    if len(kinds) != 1:
        raise ConfigError(f"{place}: a stage must have one of method, eval and export")
    kind = kinds[0]
    for key in values:
        if key not in _OWN[kind]:
            raise ConfigError(f"{place}: {_STAGES[kind]} stage has no key {key}{suggest(key, list(_OWN[kind]))}")
    method = values.get("method")
    default = method.get("name") if isinstance(method, dict) else method
    name = str(values.get("name", default if kind == "train" else kind))
    if not re.fullmatch(r"[\w.=+-]+", name) or name.startswith("."):
        raise ConfigError(f"{place}: {name!r} is not a valid stage name: use letters, digits and - _ . = +")
    if name in before:
        raise ConfigError(f"{place}: two stages are named {name}: set another name for one of them")
    suites = values.get("settings", {}) if kind == "eval" else {}
    if not isinstance(suites, dict) or not all(isinstance(inner, dict) for inner in suites.values()):
        raise ConfigError(f"{place}: settings of an eval stage must map suites to mappings of their settings")
    needs = list(dict.fromkeys(_needed(values, kind, before)))
    for need in needs:
        if need not in before:
            hint = suggest(need, list(before))
            raise ConfigError(f"{place}: stage {name} uses {need}, which is not an earlier stage{hint}")
    return Stage(name, kind, values, tuple(needs), place)


def _needed(values: Mapping[str, Any], kind: Kind, before: Sequence[str]) -> Iterator[str]:
    if kind == "export":
        yield from as_list(values["export"])
        yield from as_list(values.get("merge", []))
    elif kind == "eval":
        yield from before if values["eval"] in ("all", None) else as_list(values["eval"])
        yield from as_list(values.get("baseline", []))
        yield from references(values.get("settings", {}))
    else:
        yield from as_list(values.get("from", []))
        yield from references(values)


def as_list(value: Any) -> list[str]:
    """Return a list of words, also from text separated by commas."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return [str(word) for word in value] if isinstance(value, list) else []


def references(value: Any) -> Iterator[str]:
    """Yield the names of the stages that a value refers to."""
    if isinstance(value, str) and value.startswith(REFERENCE):
        yield value.removeprefix(REFERENCE)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for each in inner:
        yield from references(each)


def substituted(value: Any, directory: Path) -> Any:
    """Return a value with references to stages replaced by their directories."""
    if isinstance(value, str) and value.startswith(REFERENCE):
        return str(directory / value.removeprefix(REFERENCE))
    if isinstance(value, Mapping):
        return {key: substituted(inner, directory) for key, inner in value.items()}
    return [substituted(inner, directory) for inner in value] if isinstance(value, list) else value
