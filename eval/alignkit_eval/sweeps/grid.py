"""The cells of a sweep: every combination of settings and seeds, each resolved to a checked configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from alignkit import RunConfig, settings
from alignkit.contract import registry
from alignkit.errors import ConfigError

RESERVED = ("method", "config")
"""Keys of ``--over`` that name a method and a file laid over the base, not a setting."""

QUICK = ("run.plots=false", "eval.samples=0")
"""What a cell does without unless it is asked for: the sweep draws plots of its own."""


@dataclass(frozen=True)
class SweepSpec:
    """What a sweep was asked to do; kept beside it, so that it can go on."""

    over: Mapping[str, Sequence[str]]
    """Key -> values as texts, as ``--over`` takes them."""
    seeds: Sequence[int] = (0,)
    file: str | None = None
    method: str | None = None
    model: str | None = None
    data: str | None = None
    eval_data: str | None = None
    sets: Sequence[str] = ()


@dataclass(frozen=True)
class SweepCell:
    """One run of a sweep."""

    name: str
    settings: Mapping[str, Any]
    """The swept keys and their values."""
    seed: int
    config: RunConfig


def parse_over(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return ``{key: [values]}`` of ``key=v1,v2,...`` texts; a comma inside brackets belongs to its value.

    >>> parse_over(["lambda=0,0.1", "model.lora.target_modules=[q_proj,v_proj],all-linear"])
    {'lambda': ['0', '0.1'], 'model.lora.target_modules': ['[q_proj,v_proj]', 'all-linear']}
    """
    over: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        found = [value.strip() for value in _split(values)]
        if not equals or not key or not all(found):
            raise ConfigError(f"--over {text}: write key=v1,v2,...")
        if key in over:
            raise ConfigError(f"--over {text}: the key {key} is swept twice")
        if len(set(found)) < len(found):
            raise ConfigError(f"--over {text}: a value stands there twice")
        over[key] = found
    return over


def cells(asked: SweepSpec, directory: Path) -> tuple[list[SweepCell], list[str]]:
    """Return the cells of a sweep and what a user should be told about them; every configuration is checked.

    Where methods are swept, a setting that a method does not have is left out of its cells, and cells that then are alike
    are one.

    Raises:
        ConfigError: a key, value or file cannot be used.
    """
    if not asked.seeds:
        raise ConfigError("--seeds names no seed")
    if len(set(asked.seeds)) < len(asked.seeds):
        raise ConfigError("--seeds names a seed twice")
    made: dict[str, SweepCell] = {}
    notes: list[str] = []
    for values in product(*asked.over.values()):
        wanted = dict(zip(asked.over, values, strict=True))
        chosen = _applicable(asked, wanted, notes)
        for seed in asked.seeds:
            name = _name(chosen, seed)
            if name not in made:
                made[name] = _cell(asked, chosen, seed, name, directory)
    return list(made.values()), list(dict.fromkeys(notes))


def _cell(asked: SweepSpec, chosen: Mapping[str, str], seed: int, name: str, directory: Path) -> SweepCell:
    sets = [*QUICK, *asked.sets, *(f"{key}={value}" for key, value in chosen.items() if key not in RESERVED)]
    over = [Path(chosen["config"])] if "config" in chosen else []
    config = settings.resolve(
        None if asked.file is None else Path(asked.file),
        method=chosen.get("method", asked.method),
        model=asked.model,
        data=asked.data,
        eval_data=asked.eval_data,
        output=str(directory),
        name=name,
        seed=seed,
        sets=sets,
        over=over,
    ).config
    return SweepCell(name, {key: _value(value) for key, value in chosen.items()}, seed, config)


def _applicable(asked: SweepSpec, wanted: Mapping[str, str], notes: list[str]) -> dict[str, str]:
    """Leave out the settings that the cell's method does not have, where another swept method has them."""
    if "method" not in wanted:
        return dict(wanted)
    mine = _settings_of(wanted["method"])
    theirs = set().union(*(_settings_of(name) for name in asked.over["method"]))
    left = [key for key in wanted if "." not in key and key not in RESERVED and key not in mine and key in theirs]
    notes += [f"{wanted['method']} has no setting {key}: it is trained once for all values of it" for key in left]
    return {key: value for key, value in wanted.items() if key not in left}


def _settings_of(method: str) -> set[str]:
    fields = registry.load_method(method)[1].settings_type.model_fields
    return set(fields) | {info.alias for info in fields.values() if info.alias}


def _name(chosen: Mapping[str, str], seed: int) -> str:
    """Return a directory name: ``orpo-lambda=0.1-seed=0``."""
    parts = [chosen["method"]] if "method" in chosen else []
    parts += [Path(chosen["config"]).stem] if "config" in chosen else []
    parts += [f"{key}={value}" for key, value in chosen.items() if key not in RESERVED]
    return re.sub(r"[^\w.=+-]+", "_", "-".join([*parts, f"seed={seed}"]))


def _value(text: str) -> Any:
    from alignkit.settings.yaml_files import parse_value

    return parse_value(text)


def as_text(value: Any) -> str:
    """Return a value from Python as ``--over`` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _split(text: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    return [*parts, current]
