"""Resolving a configuration: layers merged, every key and value checked, the method's settings in full."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from alignkit.config import RunConfig
from alignkit.contract import registry
from alignkit.errors import ConfigError, suggest
from alignkit.settings import yaml_files as files
from alignkit.settings.layers import SECTIONS, Layer, drop_conflicting_lengths, from_dotted, key_path, merge
from alignkit.settings.messages import known_keys, problem_at, refuse_non_finite, unknown_key, validate, wrong_value
from alignkit.settings.train_keys import argument_types, check_train

if TYPE_CHECKING:
    from alignkit.contract.types import Method

DEMO = "demo"


@dataclass(frozen=True)
class Resolved:
    """A checked configuration, and what a user should be told about how it came about."""

    config: RunConfig
    notes: list[str] = field(default_factory=list)


def resolve(
    file: Path | None = None,
    *,
    method: str | None = None,
    model: str | None = None,
    data: str | None = None,
    eval_data: str | None = None,
    output: str | None = None,
    name: str | None = None,
    seed: int | None = None,
    sets: Iterable[str] = (),
    resume: bool = False,
    over: Sequence[Path] = (),
) -> Resolved:
    """Resolve what a file and a command line say into one checked configuration.

    ``over`` are further files, each laid over what stands before it.
    ``sets`` are ``key=value`` texts: a bare key is the method's own setting, a dotted one names a section. A file that
    is the run.yaml of an existing run repeats that run under the next free name, unless ``name`` or ``resume`` is given.

    Raises :class:`ConfigError` (with the place) and :class:`~alignkit.errors.PluginError`.
    """
    options = {
        ("method", "name"): ("--method", method),
        ("model", "name"): ("--model", model),
        ("data", "source"): ("--data", data),
        ("data", "eval_source"): ("--eval-data", eval_data),
        ("run", "output"): ("--output", output),
        ("run", "name"): ("--name", name),
        ("run", "seed"): ("--seed", seed),
    }
    command = from_sets(sets)
    for path, (option, value) in options.items():
        if value is not None:
            command.put(path, value, option)
    given = [files.read(path).expanded() for path in ([] if file is None else [file]) + list(over)]
    resolved = _resolve([*(given or [Layer()]), command])
    if file is not None and command.get("run", "name") is None and not resume:
        _rename_repeat(file, resolved)
    return resolved


def resolve_layers(layers: Sequence[Layer]) -> Resolved:
    """Resolve layers of configuration, later ones over earlier ones; raises as :func:`resolve` does."""
    return _resolve([layer.expanded() for layer in layers])


def check_config(config: RunConfig) -> RunConfig:
    """Check a configuration made in Python as one read from a file is, and fill in the method's and demo's defaults.

    A configuration that :func:`resolve` or :func:`check` returned comes back equal.
    """
    values = {section: getattr(config, section).model_dump(exclude_unset=True) for section in SECTIONS}
    return _resolve([Layer(values, default_place="RunConfig")]).config


def dump(config: RunConfig) -> str:
    """Return the configuration as YAML; ``align run`` on it repeats the run."""
    return files.write(config.model_dump(mode="json"))


def method_settings(method_type: type[Method[Any]], config: RunConfig, layer: Layer | None = None) -> BaseModel:
    """Return the method's validated settings; raises :class:`ConfigError` naming the key."""
    layer = layer or Layer(default_place="RunConfig")
    return _validated_settings(method_type.settings_type, config.method.settings, layer)


def _resolve(given: list[Layer]) -> Resolved:
    """Merge the user's layers over the defaults and check the outcome."""
    given = [layer.expanded() for layer in given]
    for layer in given:
        _check_sections(layer)
    users = merge(given)
    name = users.get("method", "name")
    if name is not None and not isinstance(name, str):
        raise wrong_value(users, ("method", "name"), "text", name)
    if not name:
        raise ConfigError("no method is given: use --method NAME or `method:` in the file (align methods lists them)")
    entry, method_type = registry.load_method(name)
    notes = [_shadow_note(entry, other) for other in registry.shadowed(entry)]
    notes += _leave_other_settings(given, name)
    layers = [from_dotted(method_type.defaults, f"default of {entry}")]
    if _is_demo(users):
        layers.append(_demo_preset())
        layers.append(from_dotted(method_type.demo, f"demo setting of {entry}"))
    for layer in [*layers, *given]:
        _use_aliases(layer, method_type.settings_type)
    merged = merge(drop_conflicting_lengths([*layers, *given]))
    config = validate(RunConfig, merged.values, merged)
    arguments = check_train(config.train, merged)
    settings = method_settings(method_type, config, merged)
    values = config.model_dump() | {
        "method": {"name": name, **settings.model_dump(mode="json", by_alias=True)},
        "train": {**config.train.model_dump(include=set(type(config.train).model_fields)), **arguments},
    }
    return Resolved(RunConfig.model_validate(values), notes)


def _check_sections(layer: Layer) -> None:
    """Refuse a section that does not exist or is no mapping, before another layer is merged over it."""
    for section, value in layer.values.items():
        if section not in SECTIONS:
            raise _unknown_section(layer, section)
        if not isinstance(value, dict):
            raise problem_at(layer, (section,), f"{section} must be a mapping of keys to values")


def _unknown_section(layer: Layer, section: str) -> ConfigError:
    """Return the error for a key beside the sections, saying where it belongs if one of them has it."""
    homes = _sections_with(section)
    if "." in section and section.partition(".")[0] in SECTIONS:
        first, _, rest = section.partition(".")
        return problem_at(layer, (section,), f"unknown key {section}: write `{first}:` and `{rest}:` under it")
    if homes:
        return problem_at(layer, (section,), f'unknown key {section}, did you mean "{homes[0]}"?')
    hint = suggest(section, list(SECTIONS)) or f" (the sections are {', '.join(SECTIONS)})"
    return problem_at(layer, (section,), f"unknown key {section}{hint}")


def _sections_with(key: str) -> list[str]:
    """Return ``section.key`` for every section that has ``key``."""
    homes = [
        f"{section}.{key}"
        for section, info in RunConfig.model_fields.items()
        if isinstance(info.annotation, type) and key in known_keys(info.annotation)
    ]
    return homes or [f"train.{known}" for known in argument_types() if known == key]


def from_sets(sets: Iterable[str]) -> Layer:
    """Return the layer of ``key=value`` texts, as ``--set`` takes them."""
    layer = Layer()
    for text in sets:
        key, equals, value = text.partition("=")
        place = f"--set {text}"
        if not equals:
            raise ConfigError(f"{place}: write key=value")
        path = key_path(key)
        if path[0] not in SECTIONS:
            raise ConfigError(f"{place}: there is no section {path[0]}{suggest(path[0], list(SECTIONS))}")
        if path == ("model", "trust_remote_code"):
            raise ConfigError(f"{place}: running code that comes with a model is allowed in a configuration file alone")
        layer.put(path, files.parse_value(value), place)
    return layer


def _leave_other_settings(given: list[Layer], name: str) -> list[str]:
    """Take settings out of a layer that were written for another method than the one a later layer names."""
    notes: list[str] = []
    for layer in given:
        theirs = layer.get("method", "name")
        if theirs is None or theirs == name:
            continue
        left = [key for key in layer.values["method"] if key != "name"]
        layer.values["method"] = {"name": theirs}
        if left:
            notes.append(f"{layer.default_place}: the settings of {theirs} ({', '.join(left)}) do not go to {name}")
    return notes


def _use_aliases(layer: Layer, settings_type: type[BaseModel]) -> None:
    """Write the method's settings by their symbols, so that one setting has one key whichever name it was given by."""
    section = layer.values["method"] = dict(layer.get("method") or {})
    for field_name, info in settings_type.model_fields.items():
        if info.alias and info.alias != field_name and field_name in section:
            path = ("method", field_name)
            if info.alias in section:
                raise problem_at(layer, path, f"method.{info.alias} and method.{field_name} are the same setting")
            section[info.alias] = section.pop(field_name)
            layer.places["method", info.alias] = layer.place(path)


def _validated_settings(settings_type: type[BaseModel], values: dict[str, Any], layer: Layer) -> BaseModel:
    known = known_keys(settings_type)
    open_ended = settings_type.model_config.get("extra") == "allow"
    for key in values:
        # A plugin whose model ignores unknown keys would train with a misspelt setting at its default.
        if key not in known and not open_ended:
            raise _unknown_setting(layer, key, known, _elsewhere(settings_type))
    settings = validate(settings_type, values, layer, ("method",))
    refuse_non_finite(settings.model_dump(by_alias=True, exclude_unset=True), layer, ("method",))
    return settings


def _elsewhere(settings_type: type[BaseModel]) -> dict[str, str]:
    """Return what other libraries call a setting -> what it is called here (``json_schema_extra={"elsewhere": [...]}``)."""
    names: dict[str, str] = {}
    for name, info in settings_type.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        others = extra.get("elsewhere", [])
        names |= {str(other): info.alias or name for other in (others if isinstance(others, list) else [])}
    return names


def _unknown_setting(layer: Layer, key: str, known: list[str], elsewhere: dict[str, str]) -> ConfigError:
    path = ("method", key)
    if key in elsewhere:
        return problem_at(layer, path, f"unknown key method.{key}: here it is called {elsewhere[key]}")
    if key in SECTIONS:
        return problem_at(layer, path, f"the method has no setting {key}; a key of that section is written {key}.KEY")
    if suggest(key, known):
        return unknown_key(layer, path, known)
    homes = _sections_with(key)
    hint = f', did you mean "{homes[0]}"?' if homes else f" (the method's settings are {', '.join(known) or 'none'})"
    return problem_at(layer, path, f"unknown key method.{key}{hint}")


def _is_demo(users: Layer) -> bool:
    """Whether a run is on the demo: its data, and its model or a run that was itself on the demo."""
    model, data = users.get("model", "name"), users.get("data", "source")
    return data in (None, DEMO) and not users.get("data", "sources") and (model in (None, DEMO) or _was_on_demo(model))


def _was_on_demo(model: Any) -> bool:
    path = Path(str(model)).expanduser() / "run.yaml"
    if not path.is_file():
        return False
    try:
        return bool(files.read(path).get("data", "source") == DEMO)
    except ConfigError:
        return False


def _demo_preset() -> Layer:
    from alignkit.demo import PRESET

    return from_dotted(PRESET, "preset of the demo")


def _shadow_note(entry: registry.PluginEntry, other: registry.PluginEntry) -> str:
    return (
        f"{entry.kind} {entry.name} is also offered by {other.distribution}; the built-in one is used "
        f"({other.qualified} picks the other)"
    )


def _rename_repeat(file: Path, resolved: Resolved) -> None:
    """Give the repeat of a run the next free name beside it."""
    section = resolved.config.run
    if file.name != "run.yaml" or not file.with_name("run.json").is_file() or section.name is None:
        return
    if not (Path(section.output) / section.name).exists():
        return
    names = (f"{section.name}-{number}" for number in count(2))
    section.name = next(name for name in names if not (Path(section.output) / name).exists())
    resolved.notes.append(f"repeating {file.parent}: the run is called {section.name}")
