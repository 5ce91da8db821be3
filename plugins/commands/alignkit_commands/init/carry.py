"""Carry the keys of another library's configuration over into settings here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.contract import registry
from alignkit.errors import AlignError, ConfigError
from alignkit.settings.hints import ALIASES, VALUES, known_keys
from alignkit.settings.layers import Layer
from alignkit.settings.train_keys import OWNED, argument_types

from alignkit_commands.init.given import Given
from alignkit_commands.init.tools import entry_for

_TRIES = 40
"""Most settings that are left out because they have no effect beside the others."""


@dataclass
class Carried:
    """Settings made from another library's configuration, and what was not carried over."""

    layer: Layer = field(default_factory=Layer)
    left: list[str] = field(default_factory=list)
    """``file:line: key: why``"""

    @property
    def method(self) -> str:
        return str(self.layer.get("method", "name"))


def carry(table: Mapping[str, Any], given: Given, method: str | None) -> Carried:
    """Return the settings of a configuration; raises :class:`ConfigError` if no method is known."""
    carried = Carried()
    name, place = (method, "--method") if method else _method(table, given)
    carried.layer.put(("method", "name"), name, place)
    _, method_type = registry.load_method(name)
    own = {*table.get("method_key", "").split()}
    _add_defaults(table, given, name)
    for key, value in given.values.items():
        entry = table["keys"].get(key)
        if value is None or (key in own and not isinstance(entry_for(entry, value, name), Mapping)):
            continue
        for where, found, why in _settings(key, value, entry, name, method_type.settings_type):
            place = given.places[key]
            if why is not None:
                carried.left.append(f"{place}: {key}: {why or 'not needed here'}")
            elif where == "data.source" and table.get("registered"):
                _registered(carried, given, found, place)
            elif where == "data.sources":
                _sources(carried, key, found, place)
            elif where == "data.eval_source" and isinstance(found, list):
                _held_out(carried, key, found, place)
            elif where is not None:
                _put(carried.layer, where, found, place)
    return carried


def _add_defaults(table: Mapping[str, Any], given: Given, method: str) -> None:
    """Add the library's own defaults for keys that the file does not have."""
    keys, defaults = table["keys"], table.get("defaults", {})
    adapted = any(
        isinstance(found := entry_for(keys.get(key), value, method), Mapping) and "model.lora" in found
        for key, value in given.values.items()
    )
    homes = {
        keys.get(key) for key, value in given.values.items() if isinstance(keys.get(key), str) and value is not None
    }
    homes |= {"train.num_train_epochs", "num_train_epochs"} if "max_steps" in given.values else set()
    for kind in ("*", *["lora"] * adapted, method):
        for key, value in defaults.get(kind, {}).items():
            if given.values.get(key) is None and str(keys.get(key, key)) not in homes:
                given.values[key] = 2 * given.values["lora_rank"] if value == "2*lora_rank" else value
                given.places[key] = f"default of {table['about']}"


def _method(table: Mapping[str, Any], given: Given) -> tuple[str, str]:
    """Return the method that a configuration is for, and where it says so."""
    keys, names = table["keys"], table["methods"]
    for key, entry in keys.items():  # such as pref_loss: orpo
        found = entry_for(entry, given.values.get(key), "") if key in given.values else None
        if isinstance(found, Mapping) and "method.name" in found:
            return found["method.name"], given.places[key]
    for key in table.get("method_key", "").split():
        if key in given.values and str(given.values[key] or "") in names:
            return names[str(given.values[key] or "")], given.places[key]
    for word in given.command:
        if word in names or Path(word).stem in names:
            return names.get(word) or names[Path(word).stem], str(given.path)
    for key, name in table.get("guess", {}).items():
        if key in given.values:
            return name, given.places[key]
    if "" in names:
        return names[""], str(given.path)
    raise ConfigError(f"{given.path} does not say which method it is for: add --method NAME")


def _settings(
    key: str, value: Any, entry: Any, method: str, settings_type: Any
) -> Iterator[tuple[str | None, Any, str | None]]:
    """Yield ``(our key, value, None)`` for what a key is here, or ``(None, None, why it is left out)``."""
    found = entry_for(entry, value, method) if entry is not None else _home(key, settings_type)
    if found is None:
        yield None, None, f"{_shown(value)} has no counterpart" if entry is not None else "no such setting here"
    elif isinstance(found, list):
        yield None, None, found[0]
    elif isinstance(found, Mapping):
        yield from ((where, put, None) for where, put in found.items())
    elif found.startswith("method.") and (setting := _own(key, found, settings_type)) is None:
        yield None, None, f"method {method} has no such setting"
    elif found.startswith("method."):
        yield f"method.{setting}", value, None
    elif found == "run.output+run.name":
        path = Path(str(value))
        yield from (("run.name", path.name, None), ("run.output", str(path.parent), None))
    elif found.startswith("train.") and found[6:] in OWNED:
        yield None, None, OWNED[found[6:]]
    else:
        yield found, _ours(value), None


def _home(key: str, settings_type: Any) -> Any:
    """Return our key for one that the table does not have: the method's, TrainingArguments' or a known other name."""
    if _own(key, key, settings_type):
        return f"method.{key}"
    if key in argument_types() or key in OWNED:
        return f"train.{key}"
    return ALIASES[key][0].partition(",")[0] if key in ALIASES else None


def _own(key: str, found: str, settings_type: Any) -> str | None:
    """Return the method's name of a setting: as the table says, or one of its names in other libraries."""
    known = known_keys(settings_type)
    if (name := found.removeprefix("method.")) in known:
        return name
    for alias in ALIASES.get(key, ()):
        if (other := alias.partition(",")[0].removeprefix("method.")) in known:
            return other
    for ours, info in zip(known, settings_type.model_fields.values(), strict=True):
        extra = info.json_schema_extra
        if isinstance(extra, dict) and key in extra.get("elsewhere", ()):
            return ours
    return None


def _ours(value: Any) -> Any:
    return VALUES[value.lower()][0] if isinstance(value, str) and value.lower() in VALUES else value


def _put(layer: Layer, where: str, value: Any, place: str) -> None:
    path = tuple(where.split("."))
    if path == ("model", "lora") and isinstance(layer.get(*path), dict):
        return
    if path[:2] == ("data", "columns") and path[2] == value:
        return
    layer.put(path, value, place)


def _sources(carried: Carried, key: str, entries: Any, place: str) -> None:
    """Carry over a list of data sets with their splits, files and subsets."""
    names = {"path": "source", "name": "subset", "split": "split"}
    sources = []
    for i, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        entry = {"path": entry} if isinstance(entry, str) else dict(entry or {})
        files = entry.pop("data_files", None)
        if files is not None:
            entry["path"] = files[0] if isinstance(files, list) else files
        sources.append({names[name]: value for name, value in entry.items() if name in names and value is not None})
        carried.left += [
            f"{place}: {key}.{i}.{name}: rows are recognised by their columns, else data.columns names them"
            for name in entry
            if name not in names
        ]
    if len(sources) > 1:
        carried.layer.put(("data", "sources"), sources, place)
    for name, value in (sources[0] if len(sources) == 1 else {}).items():
        carried.layer.put(("data", name), value, place)


def _held_out(carried: Carried, key: str, entries: list[Any], place: str) -> None:
    first = entries[0] if entries and isinstance(entries[0], Mapping) else {"path": entries[0] if entries else None}
    if first.get("path"):
        carried.layer.put(("data", "eval_source"), first["path"], place)
    if first.get("split"):
        carried.layer.put(("data", "eval_split"), first["split"], place)
    carried.left += [f"{place}: {key}.{i}: one source is held out" for i in range(1, len(entries))]


def _registered(carried: Carried, given: Given, names: Any, place: str) -> None:
    """Carry over names of data sets that a ``dataset_info.json`` explains."""
    folder = Path(str(given.values.get("dataset_dir") or "data"))
    folder = next((f for f in (folder, given.path.parent / folder) if (f / "dataset_info.json").is_file()), folder)
    try:
        known = json.loads((folder / "dataset_info.json").read_bytes())
    except (OSError, ValueError):
        known = {}
    sources = []
    for name in [word.strip() for word in str(names).split(",")]:
        about = known.get(name, {})
        local = str(folder / about["file_name"]) if "file_name" in about else None
        sources.append(local or about.get("hf_hub_url") or name)
        if not about:
            carried.left.append(
                f"{place}: dataset: {name} is explained in {folder}/dataset_info.json, which does not have "
                "it here: name its file or hub id in data.source"
            )
        columns = {
            "prompt": "prompt",
            "query": "input",
            "response": "completion",
            "chosen": "chosen",
            "rejected": "rejected",
        }
        for theirs, ours in columns.items():
            if (column := about.get("columns", {}).get(theirs)) and column != ours:
                carried.layer.put(("data", "columns", ours), column, place)
    if len(sources) > 1:
        carried.layer.put(("data", "sources"), sources, place)
    else:
        carried.layer.put(("data", "source"), sources[0], place)


def settle(carried: Carried, check: Any) -> str | None:
    """Leave out settings that are refused, each with its reason; return an error that no single setting causes."""
    for _ in range(_TRIES):
        try:
            check(carried.layer)
        except AlignError as error:
            message = str(error)
            refused = next((path for path in _paths(carried.layer.values) if ".".join(path) in message), None)
            if refused is None or refused in (("method", "name"), ("model", "name")):
                return message
            place = carried.layer.place(refused)
            carried.left.append(message if message.startswith(place) else f"{place}: {message}")
            _remove(carried.layer.values, refused)
        else:
            return None
    return None


def _paths(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the paths of all settings, the longest names first."""
    found = []
    for key, value in values.items():
        here = (*path, key)
        found += _paths(value, here) if isinstance(value, Mapping) and value else [here]
    return sorted(found, key=lambda p: -len(".".join(p)))


def _remove(values: dict[str, Any], path: tuple[str, ...]) -> None:
    for key in path[:-1]:
        values = values[key]
    del values[path[-1]]


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
