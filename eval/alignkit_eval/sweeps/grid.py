"""The cells of a sweep: every combination of settings and seeds, each with a validated configuration."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Any

from alignkit import RunConfig, settings
from alignkit.config import EvalConfig
from alignkit.contract import registry
from alignkit.errors import ConfigError
from alignkit.settings.layers import key_path
from alignkit.settings.yaml_files import parse_value

RESERVED = ("method", "config")
"""Keys of ``--over`` that are not settings: the method, and a file that overrides the base."""

MOST_CELLS = 1000
"""Cells of a sweep: each is checked before the first is trained."""

_OWN = {
    ("run", "seed"): "--seeds has the seeds of a sweep",
    ("run", "name"): "a sweep names its runs by their settings",
    ("run", "output"): "the runs of a sweep are in its directory (--output, --name)",
}
"""Keys that a sweep sets itself in every run."""

QUICK = ("run.plots=false", "eval.samples=0")
"""Defaults that keep sweep runs light."""


@dataclass(frozen=True)
class SweepSpec:
    """The definition of a sweep, stored in sweep.yaml so that it can be resumed."""

    over: Mapping[str, Sequence[str]]
    """Key -> values as text (``--over``)."""
    seeds: Sequence[int] = (0,)
    file: str | None = None
    method: str | None = None
    model: str | None = None
    data: str | None = None
    eval_data: str | None = None
    sets: Sequence[str] = ()
    race: Mapping[str, Any] | None = None
    """Settings of a race, complete; None: every cell is trained to its end."""


@dataclass(frozen=True)
class SweepCell:
    """One run of a sweep."""

    name: str
    settings: Mapping[str, Any]
    """Swept key -> value."""
    seed: int
    config: RunConfig
    directory: Path


def parse_over(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return ``{key: [values]}`` from ``key=v1,v2,...`` texts; commas inside brackets do not separate values.

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
            raise ConfigError(f"--over {text}: {key} is already swept by another --over")
        over[key] = found
    return over


def _identity(key: str, text: str) -> tuple[bool, Any]:
    """Return what a value is to a configuration: ``0.1`` and ``0.10`` are one, ``1`` and ``true`` are two."""
    try:
        value = parse_value(text)
    except ConfigError as error:
        raise ConfigError(f"--over {key}={text}: {error}") from error
    return isinstance(value, bool), json.dumps(value, default=str) if isinstance(value, list | dict) else value


def _refuse_equal(spec: SweepSpec) -> None:
    """Raise :class:`ConfigError` for a setting without effect, or equal values: cells would be named and compared as what they are not."""
    if spec.method not in (None, *spec.over.get("method", [spec.method])):
        raise ConfigError(f"--method {spec.method}: --over method sets it too, leave one of them out")
    for key, values in spec.over.items():
        known: dict[tuple[bool, Any], int] = {}
        for i, value in enumerate(values):
            if (first := known.setdefault(_identity(key, value), i)) < i:
                raise ConfigError(f"--over {key}={value}: a value is repeated ({values[first]} and {value} are equal)")
    swept = {key_path(key): key for key in spec.over if key not in RESERVED}
    sets = [f"--set {text}" for text in spec.sets]
    for text in [*sets, *(f"--over {key}={','.join(values)}" for key, values in spec.over.items())]:
        option, _, setting = text.partition(" ")
        path = key_path(setting.partition("=")[0])
        if path in _OWN:
            raise ConfigError(f"{text}: {_OWN[path]}")
        if option == "--set" and path in swept:
            raise ConfigError(f"{text}: --over {swept[path]} sets it too, leave one of them out")


def cells(spec: SweepSpec, directory: Path) -> tuple[list[SweepCell], list[str]]:
    """Return the cells of a sweep with validated configurations, and notes for the user.

    If methods are swept, a setting that a method does not have is removed from its cells, and equal cells are merged.

    Raises:
        ConfigError: a key, value or file cannot be used.
    """
    if not spec.seeds:
        raise ConfigError("--seeds is empty")
    if len(set(spec.seeds)) < len(spec.seeds):
        raise ConfigError("--seeds repeats a seed")
    _refuse_equal(spec)
    sizes = {key: len(values) for key, values in spec.over.items()} | {"seeds": len(spec.seeds)}
    if (count := math.prod(sizes.values())) > MOST_CELLS:
        factors = " x ".join(f"{size:,} {key}" for key, size in sizes.items())
        raise ConfigError(
            f"the sweep has {count:,} cells ({factors}), more than {MOST_CELLS:,}: split it into several sweeps"
        )
    made: dict[str, SweepCell] = {}
    notes: list[str] = []
    known: set[tuple[tuple[tuple[str, str], ...], int]] = set()
    for combination in product(*spec.over.values()):
        swept = _applicable(spec, dict(zip(spec.over, combination, strict=True)), notes)
        for seed in spec.seeds:
            if (cell := (tuple(swept.items()), seed)) not in known:
                known.add(cell)
                name = _free(_name(swept, seed), made)
                made[name] = _cell(spec, swept, seed, name, directory)
    return list(made.values()), list(dict.fromkeys(notes))


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """Return the name, numbered if another cell has it: ``a/x.yaml`` and ``b/x.yaml`` have the same."""
    return next(free for n in count(1) if (free := name if n == 1 else f"{name}-{n}") not in taken)


def _cell(spec: SweepSpec, swept: Mapping[str, str], seed: int, name: str, directory: Path) -> SweepCell:
    sets = [f"{key}={value}" for key, value in swept.items() if key not in RESERVED]
    quick = [*QUICK]
    if not any(text.startswith("eval.sample") for text in [*spec.sets, *sets]):
        quick.append(f"eval.sample_tokens={EvalConfig().sample_tokens}")  # the file's are of its own samples
    try:
        config = settings.resolve(
            None if spec.file is None else Path(spec.file),
            method=swept.get("method", spec.method),
            model=spec.model,
            data=spec.data,
            eval_data=spec.eval_data,
            output=str(directory),
            name=name,
            seed=seed,
            sets=[*quick, *spec.sets, *sets],
            over=[Path(swept["config"])] if "config" in swept else [],
            apart="race",
        ).config
    except ConfigError as error:  # in the words of the sweep's own options
        message = str(error).replace(f"--seed {seed}:", "--seeds:").replace("--seed:", "--seeds:")
        for text in sets:
            message = message.replace(f"--set {text}:", f"--over {text}:")
        raise ConfigError(message) from error
    if spec.race is not None:
        config.run.pause_at = sorted({*config.run.pause_at, *spec.race["rungs"]})
    return SweepCell(name, {key: parse_value(value) for key, value in swept.items()}, seed, config, directory / name)


def _applicable(spec: SweepSpec, values: Mapping[str, str], notes: list[str]) -> dict[str, str]:
    """Return the settings without those that only other swept methods, or other swept losses, have."""
    chosen = [key for key in ("method", "loss") if key in values]
    if not chosen:
        return dict(values)
    fixed = {"method": spec.method, **dict(text.split("=", 1) for text in spec.sets if "=" in text)}
    own = _settings_of({**fixed, **values})
    others = (dict(zip(chosen, found, strict=True)) for found in product(*(spec.over[key] for key in chosen)))
    of_all = set().union(*(_settings_of({**fixed, **other}) for other in others))
    dropped = [key for key in values if "." not in key and key not in RESERVED and key not in own and key in of_all]
    who = " with ".join(values[key] if key == "method" else f"loss {values[key]}" for key in chosen)
    notes += [f"{who} has no setting {key}: it is trained once for all its values" for key in dropped]
    return {key: value for key, value in values.items() if key not in dropped}


def _settings_of(choice: Mapping[str, str | None]) -> set[str]:
    """Return the keys of the settings of a method, with those of the loss where it has a choice of losses."""
    if choice["method"] is None:  # it is in the file
        return set()
    settings_type: Any = registry.load_method(choice["method"])[1].settings_type
    if "loss" in settings_type.model_fields and hasattr(settings_type, "with_sections") and choice.get("loss"):
        settings_type = settings_type.with_sections({"loss": parse_value(str(choice["loss"]))})
    fields = settings_type.model_fields
    return set(fields) | {info.alias for info in fields.values() if info.alias}


def _name(swept: Mapping[str, str], seed: int) -> str:
    """Return a directory name: ``orpo-lambda=0.1-seed=0``."""
    parts = [swept["method"]] if "method" in swept else []
    parts += [Path(swept["config"]).stem] if "config" in swept else []
    parts += [f"{key}={value}" for key, value in swept.items() if key not in RESERVED]
    return re.sub(r"[^\w.=+-]+", "_", "-".join([*parts, f"seed={seed}"]))


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
