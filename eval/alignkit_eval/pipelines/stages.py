"""Pipeline files: their stages, the stages each depends on, and the plugins that carry them out."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alignkit import RunConfig, Stage, StageContext, settings
from alignkit.contract import registry
from alignkit.contract.guard import loading
from alignkit.errors import AlignError, ConfigError, suggest
from alignkit.settings.layers import SECTIONS, Layer
from alignkit.settings.messages import validate
from alignkit.settings.yaml_files import read

REFERENCE = "stage:"
"""Prefix of a value that refers to another stage's directory: ``reward: stage:reward``."""

KINDS = {"method": "train", "export": "export", "eval": "eval"}
"""Keys that identify a stage without ``stage:``, in order: ``eval`` is also a section of training stages."""

STAGE_NAME = r"(?!\.)[\w.=+-]+"
"""What a stage may be called."""

_TOP = ("name", "output", "stages", "model", "data", "train", "eval", "compare", "run", "tracker")
_OWN = ("name", "stage")
"""Keys of a stage that are not settings of its plugin."""


@dataclass(frozen=True)
class ListedStage:
    """One stage of a pipeline file."""

    name: str
    kind: str
    """Name of its plugin."""
    values: Mapping[str, Any]
    """The stage's mapping in the file."""
    needs: tuple[str, ...]
    """Names of the stages it depends on."""
    optional: frozenset[str]
    """Those of them that may be skipped: it takes all there are."""
    place: str
    """Location in the file (file:line)."""
    plugin: type[Stage[Any]]


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file: shared sections, and stages in order."""

    file: Path
    name: str
    output: str
    shared: Layer
    stages: tuple[ListedStage, ...]
    places: Mapping[tuple[str, ...], str]

    def stage(self, name: str, option: str) -> ListedStage:
        """Return a stage by name; raises :class:`ConfigError` naming ``option`` if it is unknown."""
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise ConfigError(f"{option} {name}: unknown stage{suggest(name, names)} (stages: {', '.join(names)})")
        return self.stages[names.index(name)]

    def config(
        self, name: str, directory: Path, sets: Sequence[str] = (), sections: Mapping[str, Any] | None = None
    ) -> RunConfig:
        """Return the configuration of a run in a stage: ``sections`` over those that all stages share."""
        stage = self.stage(name, "stage")
        head = ("stages", str(self.stages.index(stage)))
        places = {path[2:]: place for path, place in self.places.items() if path[:2] == head}
        layer = Layer(copy.deepcopy(dict(sections or {})), places, default_place=stage.place).expanded()
        own = Layer(default_place=str(self.file))
        own.put(("run", "output"), str(directory), stage.place)
        own.put(("run", "name"), stage.name, stage.place)
        shared = Layer(copy.deepcopy(self.shared.values), dict(self.shared.places), self.shared.default_place)
        return settings.resolve_layers([shared, layer, settings.from_sets(sets), own]).config

    def open(self, directory: Path, sets: Sequence[str] = ()) -> dict[str, Stage[Any]]:
        """Return every stage by name, with its settings checked; raises :class:`ConfigError` with the line of a wrong one."""
        found: dict[str, Stage[Any]] = {}
        for number, listed in enumerate(self.stages):
            given = {key: value for key, value in listed.values.items() if key not in _OWN}
            given = substituted(given, directory)
            layer = Layer(places=dict(self.places), default_place=listed.place)
            own = validate(listed.plugin.settings_type, given, layer, ("stages", str(number)))
            configure = partial(self.config, listed.name, directory, tuple(sets))
            context = StageContext(
                listed.name, listed.place, listed.values, directory / listed.name, dict(found), configure
            )
            try:
                with loading(f"{registry.find('align.stages', listed.kind)} cannot be set up"):
                    found[listed.name] = listed.plugin(own, context)
            except AlignError as error:
                error.add_note(f"in stage {listed.name}, {listed.place}")
                raise
        return found


def read_pipeline(file: Path) -> Pipeline:
    """Read a pipeline file; raises :class:`ConfigError` with the line of an invalid key or value."""
    layer = read(file)
    for key in layer.values:
        if key not in _TOP:
            raise ConfigError(f"{layer.place((key,))}: unknown key {key}{suggest(key, list(_TOP))}")
    given = layer.values.get("stages")
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{layer.place(('stages',))}: a pipeline needs a list of stages")
    stages: list[ListedStage] = []
    for number, values in enumerate(given):
        place = layer.place(("stages", str(number)))
        stages.append(_stage(values, place, stages))
    shared = {key: value for key, value in layer.values.items() if key in SECTIONS}
    name = layer.values.get("name", file.stem)
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{layer.place(('name',))}: name must be a directory name")
    output = str(layer.values.get("output", "runs"))
    return Pipeline(file, name, output, Layer(shared, layer.places, str(file)), tuple(stages), layer.places)


def _stage(values: Any, place: str, before: Sequence[ListedStage]) -> ListedStage:
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: a stage must be a mapping with stage, method, eval or export")
    kind = _kind(values, place)
    try:
        plugin: type[Stage[Any]] = registry.load(registry.find("align.stages", kind))
    except AlignError as error:
        raise type(error)(f"{place}: {error}") from error
    known = [field.alias or key for key, field in plugin.settings_type.model_fields.items()]
    for key in values:
        if key not in (*known, *_OWN):
            raise ConfigError(f"{place}: {_article(kind)} stage has no key {key}{suggest(key, [*known, *_OWN])}")
    method = values.get("method")
    default = method.get("name") if isinstance(method, dict) else method
    name = str(values.get("name", default if kind == "train" else kind.rpartition(":")[2]))
    if not re.fullmatch(STAGE_NAME, name):
        raise ConfigError(f"{place}: {name!r} is not a valid stage name: use letters, digits and - _ . = +")
    names = [stage.name for stage in before]
    if name in names:
        raise ConfigError(f"{place}: two stages are named {name}: set another name for one of them")
    explicit = list(dict.fromkeys(_needed(values, plugin)))
    needs = tuple(dict.fromkeys([*(names if _takes_all(values, plugin) else ()), *explicit]))
    for need in needs:
        if need not in names:
            raise ConfigError(f"{place}: stage {name} uses {need}, which is not an earlier stage{suggest(need, names)}")
    _check_inputs(values, plugin, {stage.name: stage for stage in before}, f"{place}: ", name)
    return ListedStage(name, kind, values, needs, frozenset(needs) - set(explicit), place, plugin)


def _kind(values: Mapping[str, Any], place: str) -> str:
    """Return the name of a stage's plugin: given as ``stage``, or by a key that identifies it."""
    if "stage" in values:
        if not isinstance(values["stage"], str):
            raise ConfigError(f"{place}: stage must be the name of a kind of stage (align plugins lists them)")
        return values["stage"]
    found = [kind for key, kind in KINDS.items() if key in values]
    if len(found) > 1 and found[-1] == "eval":
        found.pop()  # a section of a training stage
    if len(found) != 1:
        raise ConfigError(
            f"{place}: a stage must have one of method, eval and export, or the name of its kind as stage: NAME"
        )
    return found[0]


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeio' else 'a'} {kind}"


def _takes_all(values: Mapping[str, Any], plugin: type[Stage[Any]]) -> bool:
    return "eval" in plugin.inputs and values.get("eval", "") in ("all", None)


def _needed(values: Mapping[str, Any], plugin: type[Stage[Any]]) -> Iterator[str]:
    """Yield the names of the stages that a stage names."""
    for key in plugin.inputs:
        if not (key == "eval" and _takes_all(values, plugin)):
            yield from as_list(values.get(key, []))
    yield from (reference.partition("/")[0] for reference in _references(values, plugin))


def _references(values: Mapping[str, Any], plugin: type[Stage[Any]]) -> Iterator[str]:
    return references({key: value for key, value in values.items() if key not in (*plugin.inputs, *_OWN)})


def _check_inputs(
    values: Mapping[str, Any], plugin: type[Stage[Any]], before: Mapping[str, ListedStage], head: str, name: str
) -> None:
    """Refuse a stage of the wrong kind under a key, and a file that a stage does not write."""
    for key, kinds in plugin.inputs.items():
        for other in [] if key == "eval" and _takes_all(values, plugin) else as_list(values.get(key, [])):
            if kinds and (kind := before[other].kind) not in kinds:
                raise ConfigError(f"{head}{key} of stage {name} names {other}, {_article(kind)} stage")
    for reference in _references(values, plugin):
        other, _, inner = reference.partition("/")
        outputs = before[other].plugin.outputs
        if inner and outputs and inner.partition("/")[0] not in outputs:
            raise ConfigError(
                f"{head}stage {name} uses {REFERENCE}{reference}, and stage {other} writes {', '.join(outputs)}"
            )


def as_list(value: Any) -> list[str]:
    """Return a list of words, also from text separated by commas."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return [str(word) for word in value] if isinstance(value, list) else []


def references(value: Any) -> Iterator[str]:
    """Yield what a value refers to: names of stages, some with a path in their results (``docs/rows.jsonl``)."""
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
