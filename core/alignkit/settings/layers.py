"""Configuration layers, merged in order of precedence, with the origin of every value for error messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkit.config import SHORTHANDS
from alignkit.errors import ConfigError

KeyPath = tuple[str, ...]

SECTIONS = ("method", "model", "data", "train", "eval", "compare", "run", "tracker")

LENGTHS = {"max_steps", "num_train_epochs"}
"""The keys of ``train:`` for the length of a run; the layer with higher precedence decides which one applies."""


@dataclass
class Layer:
    """Values by section, with their origins: ``("train", "learning_rate")`` -> ``"orpo.yaml:7"``."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    default_place: str = ""

    def place(self, path: KeyPath) -> str:
        """Return the origin of ``path``, or of the nearest enclosing key."""
        enclosing = (path[:end] for end in range(len(path), 0, -1))
        return next((self.places[found] for found in enclosing if found in self.places), self.default_place)

    def put(self, path: KeyPath, value: Any, place: str) -> None:
        """Set one value, creating the enclosing mappings."""
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
        """Return the layer with one-word sections (``method: orpo``) expanded."""
        values = {
            section: {SHORTHANDS[section]: value} if isinstance(value, str) and section in SHORTHANDS else value
            for section, value in self.values.items()
        }
        return Layer(values, dict(self.places), self.default_place)


def from_dotted(values: Mapping[str, Any], place: str) -> Layer:
    """Return a layer from dotted keys: ``{"train.learning_rate": 5e-7}``."""
    layer = Layer(default_place=place)
    for key, value in values.items():
        layer.put(tuple(key.split(".")), value, place)
    return layer


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key, the inverse of :func:`from_dotted`; lists and empty mappings stay whole."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= dotted(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found


def merge(layers: Iterable[Layer]) -> Layer:
    """Merge layers key by key; later layers take precedence."""
    merged = Layer()
    for layer in layers:
        merged.default_place = layer.default_place or merged.default_place
        _merge_into(merged, layer, layer.values, ())
    return merged


def drop_conflicting_lengths(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers without a training length that a later layer sets in the other unit.

    In transformers ``max_steps`` always overrides ``num_train_epochs``, so without this a default of ``max_steps`` would
    silently override a user's ``num_train_epochs``.
    """
    kept: list[Layer] = []
    given: set[str] = set()
    for layer in reversed(layers):
        train = layer.get("train")
        if isinstance(train, dict):
            train = {key: value for key, value in train.items() if not given or key in given or key not in LENGTHS}
            given |= train.keys() & LENGTHS
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
    """Return the path of a ``--set`` key: a bare key is a setting of the method, a dotted key belongs to a section.

    >>> key_path("lambda"), key_path("train.learning_rate"), key_path("method")
    (('method', 'lambda'), ('train', 'learning_rate'), ('method', 'name'))
    """
    parts = tuple(part.strip() for part in key.split("."))
    if not all(parts):
        raise ConfigError(f'--set {key}: write a key as "lambda" or "train.learning_rate"')
    return parts if len(parts) > 1 else ("method", "name" if parts == ("method",) else parts[0])
