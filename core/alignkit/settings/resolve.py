"""Resolution of a configuration: merge the layers, validate every key and value, and fill in the method's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from alignkit.config import RunConfig
from alignkit.contract import Method, registry
from alignkit.demo import PRESET, model_path
from alignkit.errors import ConfigError, PluginError, shortened
from alignkit.settings import yaml_files as files
from alignkit.settings.hints import did_you_mean, known_keys
from alignkit.settings.layers import SECTIONS, KeyPath, Layer, drop_conflicting_lengths, from_dotted, key_path, merge
from alignkit.settings.messages import problem_at, validate, wrong_value
from alignkit.settings.train_keys import argument_types, check_train

DEMO = "demo"


@dataclass(frozen=True)
class Resolved:
    """A validated configuration, and notes for the user about how it was resolved."""

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
    processes: int | str | None = None,
    nodes: int | None = None,
    strategy: str | None = None,
    engine: str | None = None,
    sets: Iterable[str] = (),
    resume: bool = False,
    over: Sequence[Path] = (),
    apart: str = "",
    loading: Callable[[str], object] = str,
) -> Resolved:
    """Resolve a file and command-line options into a validated configuration.

    The run.yaml of an existing run repeats that run under the next free name, unless ``name`` or ``resume`` is given.

    Args:
        file: configuration file; the arguments up to ``engine`` are the options of ``align run``.
        sets: ``key=value`` texts (``--set``): a bare key is a setting of the method, a dotted one a key of a section.
        resume: whether an existing run is resumed.
        over: further files, each overriding the ones before.
        apart: section of the files that is the caller's own.
        loading: called with what is going to be loaded, before the first import that takes seconds.

    Raises:
        ConfigError: a file, key or value cannot be used; the message names its origin.
        PluginError: the method cannot be loaded.
    """
    options = {
        ("method", "name"): ("--method", method),
        ("model", "name"): ("--model", model),
        ("data", "source"): ("--data", data),
        ("data", "eval_source"): ("--eval-data", eval_data),
        ("run", "output"): ("--output", output),
        ("run", "name"): ("--name", name),
        ("run", "seed"): ("--seed", seed),
        ("run", "processes"): ("--processes", processes),
        ("run", "nodes"): ("--nodes", nodes),
        ("run", "strategy"): ("--strategy", strategy),
        ("run", "engine"): ("--engine", engine),
    }
    command = from_sets(sets)
    for path, (option, value) in options.items():
        if value is not None:
            if command.get(*path) not in (None, value):
                raise ConfigError(f"{command.place(path)}: {option} sets {'.'.join(path)} too, leave one of them out")
            command.put(path, value, option)
    if file is not None and not file.exists() and str(file) in registry.usable("align.methods"):
        raise ConfigError(f"there is no file {file}: did you mean --method {file}?")
    given = [files.read(path) for path in ([] if file is None else [file]) + list(over)]
    for layer in given:
        layer.values.pop(apart, None)
    resolved = resolve_layers([*given, command], loading)
    if file is not None and command.get("run", "name") is None and not resume:
        _rename_repeat(file, resolved)
    return resolved


def check_config(config: RunConfig) -> RunConfig:
    """Validate a configuration made in Python like one from a file, and fill in the method's and the demo's defaults.

    The result of :func:`resolve` or :func:`check_config` is returned unchanged.
    """
    values = {section: getattr(config, section).model_dump(exclude_unset=True) for section in SECTIONS}
    return resolve_layers([Layer(values, default_place="RunConfig")]).config


def dump(config: RunConfig) -> str:
    """Return the configuration as YAML; ``align run`` on it repeats the run."""
    return files.write(config.model_dump(mode="json"))


def resolve_layers(layers: Sequence[Layer], loading: Callable[[str], object] = str) -> Resolved:
    """Resolve the user's layers, later ones overriding earlier ones, over the defaults; raises as :func:`resolve`."""
    given = [layer.expanded() for layer in layers]
    for layer in given:
        _check_sections(layer, given)
    users = merge(given)
    name = users.get("method", "name")
    if not isinstance(name, str | None):
        raise wrong_value(users, ("method", "name"), "text", name)
    if not name:
        raise ConfigError("no method given: use --method NAME or `method:` in the file (align methods lists them)")
    registry.find("align.methods", name)
    loading(f"{name} on {users.get('model', 'name') or DEMO}: loading PyTorch and transformers")
    entry, method_type = registry.load_method(name)
    notes = [
        f"{entry.kind} {entry.name} is also provided by {other.distribution}; the built-in one is used "
        f"({other.qualified} selects the other)"
        for other in registry.shadowed(entry)
    ]
    notes += _drop_other_settings(given, name)
    defaults = [from_dotted(method_type.defaults, f"default of {entry}")]
    if users.get("model", "lora"):
        defaults.append(from_dotted(method_type.lora_defaults, f"default of {entry} for LoRA"))
    if users.get("model", "name") in (None, DEMO, str(model_path())):
        defaults.append(from_dotted({"model.dtype": PRESET["model.dtype"]}, "preset of the demo's model"))
    if _is_demo(users):
        defaults.append(from_dotted(PRESET, "preset of the demo"))
        defaults.append(from_dotted(method_type.demo, f"demo setting of {entry}"))
    variant = users.get("method", "variant")
    preset = from_dotted(method_type.variants.get(str(variant), {}), f"variant {variant} of {entry}")
    # It overrides layers that name another variant: the run.yaml of a run has all values of that run's variant.
    others = [i for i, layer in enumerate(given, 1) if layer.get("method", "variant") not in (None, variant)]
    ordered = [*defaults, *given[: max(others, default=0)], preset, *given[max(others, default=0) :]]
    for layer in ordered:
        _use_aliases(layer, method_type.settings_type)
    if evaluation := registry.provided("align.callbacks", "default-evaluation"):
        ordered.insert(0, from_dotted(evaluation(merge(ordered).values), "default of methods with a reward"))
    merged = merge(drop_conflicting_lengths(ordered))
    config = validate(RunConfig, merged.values, merged)
    arguments = check_train(config.train, merged, own_trainer=hasattr(method_type, "align_build_trainer"))
    settings = method_settings(method_type, config, merged)
    values = config.model_dump() | {
        "method": {"name": name, **settings.model_dump(mode="json", by_alias=True)},
        "train": {**config.train.model_dump(include=set(type(config.train).model_fields)), **arguments},
    }
    return Resolved(RunConfig.model_validate(values), notes)


def _check_sections(layer: Layer, given: Sequence[Layer]) -> None:
    """Raise :class:`ConfigError` for a section that is unknown or not a mapping, before layers are merged."""
    for section, value in layer.values.items():
        if section not in SECTIONS:
            first, dot, rest = section.partition(".")
            if dot and first in SECTIONS:
                hint = f": write `{first}:` and `{rest}:` under it"
            elif section in (settings := _settings_of(given)):
                hint = f": it is a setting of the method, write `{section}:` under `method:`"
            else:
                hint = _home(section, [*SECTIONS, *settings])
            hint = hint or f" (the sections are {', '.join(SECTIONS)})"
            raise problem_at(layer, (section,), f"unknown key {section}{hint}")
        if not isinstance(value, dict):
            hint = ": it is empty, write its keys under it or remove it" if value is None else ""
            raise problem_at(layer, (section,), f"{section} must be a mapping of keys to values{hint}")


def _settings_of(given: Sequence[Layer]) -> list[str]:
    """Return the keys of the settings of the method that the layers name; empty if it cannot be loaded."""
    method = merge(layer for layer in given if isinstance(layer.values.get("method"), dict)).get("method") or {}
    try:
        return known_keys(_completed(registry.load_method(str(method.get("name")))[1].settings_type, method))
    except PluginError:
        return []


def _home(key: str, known: list[str]) -> str:
    """Return ``', did you mean "section.key"?'`` for a key that is not among ``known``, or an empty string."""
    return did_you_mean(key, known) or (f', did you mean "train.{key}"?' if key in argument_types() else "")


def from_sets(sets: Iterable[str]) -> Layer:
    """Return a layer from ``key=value`` texts (``--set``); raises ``ConfigError`` for another text or an unknown section."""
    layer, keys = Layer(), dict[KeyPath, str]()
    for text in sets:
        key, equals, value = text.partition("=")
        place = f"--set {shortened(text, 60)}"
        if not equals:
            raise ConfigError(f"{place}: write key=value")
        path = key_path(key)
        if path[0] not in SECTIONS and path[0] not in (samplers := registry.usable("align.samplers")):
            raise ConfigError(f"{place}: unknown section {path[0]}{did_you_mean(path[0], [*SECTIONS, *samplers])}")
        path = path if path[0] in SECTIONS else ("method", *path)
        if path == ("model", "trust_remote_code"):
            raise ConfigError(f"{place}: model.trust_remote_code can only be set in a configuration file")
        if (other := keys.setdefault(path, key)) != key:
            raise ConfigError(f"{place}: {key} and {other} are the same setting, leave one of them out")
        try:
            layer.put(path, files.parse_value(value), place)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from error
    return layer


def _drop_other_settings(given: list[Layer], name: str) -> list[str]:
    """Remove the settings of other methods from layers that name one; return a note for each such layer."""
    notes: list[str] = []
    for layer in given:
        other = layer.get("method", "name")
        if other is None or other == name:
            continue
        dropped = ", ".join(key for key in layer.values["method"] if key != "name")
        layer.values["method"] = {"name": other}
        if dropped:
            notes.append(f"{layer.default_place}: the settings of {other} ({dropped}) are not used for {name}")
    return notes


def _use_aliases(layer: Layer, settings_type: type[BaseModel]) -> None:
    """Rename the method's settings to their aliases, so that a setting has the same key in every layer."""
    section = layer.values["method"] = dict(layer.get("method") or {})
    for field_name, info in settings_type.model_fields.items():
        if info.alias and info.alias != field_name and field_name in section:
            path = ("method", field_name)
            if info.alias in section:
                raise problem_at(layer, path, f"method.{info.alias} and method.{field_name} are the same setting")
            section[info.alias] = section.pop(field_name)
            layer.places["method", info.alias] = layer.place(path)


def method_settings(method_type: type[Method[Any]], config: RunConfig, layer: Layer | None = None) -> BaseModel:
    """Return the method's validated settings; raises :class:`ConfigError` naming the key."""
    layer = layer or Layer(default_place="RunConfig")
    values = config.method.settings
    settings_type = _completed(method_type.settings_type, values)
    # If a plugin's model ignored unknown keys, a misspelt setting would silently keep its default.
    unknown = [key for key in values if key not in known_keys(settings_type)]
    if unknown and settings_type.model_config.get("extra") != "allow":
        raise _unknown_setting(layer, unknown[0], settings_type)
    return validate(settings_type, values, layer, ("method",))


def _completed(settings_type: type[BaseModel], values: Mapping[str, Any]) -> type[BaseModel]:
    """Return a method's settings with the sections of the plugins that ``values`` name."""
    complete = getattr(settings_type, "with_sections", None)
    return complete(values) if complete else settings_type


def _unknown_setting(layer: Layer, key: str, settings_type: type[BaseModel]) -> ConfigError:
    path = ("method", key)
    known = known_keys(settings_type)
    for name, info in zip(known, settings_type.model_fields.values(), strict=True):
        extra: Any = info.json_schema_extra
        if isinstance(extra, dict) and key in extra.get("elsewhere", ()):  # its name in other libraries
            return problem_at(layer, path, f"unknown key method.{key}: here it is called {name}")
    if key in registry.usable("align.samplers"):
        return problem_at(layer, path, f"method.{key} has no effect without method.sampler: {key}")
    if key in SECTIONS:
        return problem_at(layer, path, f"the method has no setting {key}; write {key}.KEY for a key of that section")
    hint = _home(key, known) or f" (the method's settings are {', '.join(known) or 'none'})"
    return problem_at(layer, path, f"unknown key method.{key}{hint}")


def _is_demo(users: Layer) -> bool:
    """Return whether a run uses the demo's data, and the demo's model or a model trained on the demo."""
    model, data = users.get("model", "name"), users.get("data", "source")
    if data not in (None, DEMO) or users.get("data", "sources"):
        return False
    if model in (None, DEMO):
        return True
    path = Path(str(model)).expanduser() / "run.yaml"
    try:
        return path.is_file() and bool(files.read(path).get("data", "source") == DEMO)
    except ConfigError:
        return False


def _rename_repeat(file: Path, resolved: Resolved) -> None:
    """Give the repetition of a run the next free name in its parent directory."""
    section = resolved.config.run
    if file.name != "run.yaml" or not file.with_name("run.json").is_file() or section.name is None:
        return
    parent = Path(section.output)
    if not (parent / section.name).exists():
        return
    names = (f"{section.name}-{number}" for number in count(2))
    section.name = next(name for name in names if not (parent / name).exists())
    resolved.notes.append(f"repeating {file.parent}: the new run is named {section.name}")
