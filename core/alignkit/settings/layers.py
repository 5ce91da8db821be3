"""Layers of configuration, merged in order of precedence, with every value's place kept for messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkit.errors import ConfigError

KeyPath = tuple[str, ...]

SECTIONS = ("method", "model", "data", "train", "eval", "run")
SHORTHANDS = {"method": "name", "model": "name", "data": "source"}
"""Sections that may be written as one word, and the key the word stands for."""

LENGTHS = ("max_steps", "num_train_epochs")
"""The keys of ``train:`` that say how long a run is; the one given last counts."""


@dataclass
class Layer:
    """Values by section, and where they came from: ``("train", "learning_rate")`` -> ``"orpo.yaml:7"``."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    default_place: str = ""

    def place(self, path: KeyPath) -> str:
        """Return where ``path``, or the nearest key around it, was given."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path[:-1]
        return self.default_place

    def put(self, path: KeyPath, value: Any, place: str) -> None:
        """Set one value, making the mappings it stands in."""
        target = self.values
        for key in path[:-1]:
            inner = target.get(key)
            if not isinstance(inner, dict):
                inner = target[key] = {}
            target = inner
        target[path[-1]] = value
        self.places[path] = place

    def get(self, *path: str) -> Any:
        """Return the value at ``path``, or None."""
        found: Any = self.values
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def expanded(self) -> Layer:
        """Return the layer with one-word sections written out (``method: orpo``) and empty ones left out."""
        out = Layer(dict(self.values), dict(self.places), self.default_place)
        for section in SECTIONS:
            value = out.values.get(section, {})
            if value is None:
                del out.values[section]
            elif isinstance(value, str) and section in SHORTHANDS:
                out.values[section] = {SHORTHANDS[section]: value}
        return out


def from_dotted(values: Mapping[str, Any], place: str) -> Layer:
    """Return the layer of ``{"train.learning_rate": 5e-7}``."""
    layer = Layer(default_place=place)
    for key, value in values.items():
        layer.put(tuple(key.split(".")), value, place)
    return layer


def merge(layers: Iterable[Layer]) -> Layer:
    """Merge layers, later ones over earlier ones, mappings key by key."""
    merged = Layer()
    for layer in layers:
        merged.default_place = layer.default_place or merged.default_place
        _merge_into(merged, layer, layer.values, ())
    return merged


def drop_conflicting_lengths(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers with a training length taken out of each that a later layer gives in the other unit.

    ``max_steps`` beats ``num_train_epochs`` in transformers whoever set it, so a default of the one would silently win
    over a user's choice of the other.
    """
    kept: list[Layer] = []
    given: set[str] = set()
    for layer in reversed(layers):
        train = layer.get("train")
        if isinstance(train, dict):
            rivals = {LENGTHS[1 - LENGTHS.index(key)] for key in given}
            train = {key: value for key, value in train.items() if key not in rivals - given}
            given |= train.keys() & set(LENGTHS)
            layer = Layer({**layer.values, "train": train}, layer.places, layer.default_place)
        kept.insert(0, layer)
    return kept


def _merge_into(merged: Layer, layer: Layer, values: Mapping[str, Any], path: KeyPath) -> None:
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, Mapping):
            if not isinstance(merged.get(*here), dict):
                merged.put(here, {}, layer.place(here))
            _merge_into(merged, layer, value, here)
        else:
            merged.put(here, value, layer.place(here))


def key_path(key: str) -> KeyPath:
    """Return the path of a key as ``--set`` takes it: a bare key is the method's own setting, a dotted one a section's.

    >>> key_path("lambda"), key_path("train.learning_rate"), key_path("method")
    (('method', 'lambda'), ('train', 'learning_rate'), ('method', 'name'))
    """
    parts = tuple(part.strip() for part in key.split("."))
    if not all(parts):
        raise ConfigError(f'--set {key}: a key is written as "lambda" or "train.learning_rate"')
    if parts == ("method",):
        return ("method", "name")
    return parts if len(parts) > 1 else ("method", *parts)
