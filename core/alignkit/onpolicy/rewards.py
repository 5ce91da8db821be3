"""Loading of rewards, and scoring of answers with their weighted sum.

A reward is a plugin under ``align.rewards``, a trained reward model given by its path, or any function (:func:`load_function`).
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import logging
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from alignkit.contract import Answered, Reward, RewardSpec, registry
from alignkit.contract.guard import loading, named, running
from alignkit.errors import ConfigError, PluginError, RunFailedError, first_line
from alignkit.settings.layers import Layer
from alignkit.settings.messages import validate
from alignkit.system import trust
from alignkit.system.code import source_files
from alignkit.system.files import digest

logger = logging.getLogger(__name__)

RewardFunction = Callable[[Sequence[Answered]], Sequence[float | None]]


@dataclass(frozen=True)
class LoadedReward:
    label: str
    weight: float
    function: RewardFunction

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return the rewards, NaN for None; raises :class:`RunFailedError` naming the reward and the rows it fails on."""
        with running(f"reward {self.label} failed on {_rows(answers)}"):
            found = self.function(answers) if answers else []
            values = list(found) if isinstance(found, Iterable) and not isinstance(found, str) else None
        if values is None or len(values) != len(answers):
            what = type(found).__name__ if values is None else f"{len(values)} numbers"
            raise RunFailedError(
                f"reward {self.label} returned {what} for {len(answers)} answers, not one number for each"
            )
        bad = [(a, value) for a, value in zip(answers, values, strict=True) if not (value is None or _is_number(value))]
        if bad:
            shown = f"reward {self.label} is not a finite number ({bad[0][1]!r:.80})"
            raise RunFailedError(f"{shown} for {len(bad)} answers, {_rows([answer for answer, _ in bad])}")
        return [math.nan if value is None else float(value) for value in values]


@dataclass(frozen=True)
class Rewards:
    """Weighted sum of several rewards, and each of them by label (NaN: not judged); all of length ``[answers]``."""

    total: list[float]
    parts: dict[str, list[float]]


def open_rewards(specs: Sequence[RewardSpec]) -> list[LoadedReward]:
    """Load every reward with its settings; raises :class:`ConfigError` or ``PluginError`` if one cannot be used."""
    opened: list[LoadedReward] = []
    for spec in specs:
        label, function = _open(spec)
        number = sum(one.label.partition("#")[0] == label for one in opened) + 1
        opened.append(LoadedReward(label if number == 1 else f"{label}#{number}", spec.weight, function))
    return opened


def score_answers(rewards: Sequence[LoadedReward], answers: Sequence[Answered]) -> Rewards:
    """Score the answers with every reward and sum by weight those that judged an answer (as in TRL, none of them: 0)."""
    parts = {reward.label: reward(answers) for reward in rewards}
    weights = {reward.label: reward.weight for reward in rewards}
    judged = [
        [weights[label] * v[i] for label, v in parts.items() if not math.isnan(v[i])] for i in range(len(answers))
    ]
    if rewards and (none := [answer for answer, found in zip(answers, judged, strict=True) if not found]):
        logger.warning("no reward judges %d answers (%s): they count as 0", len(none), _rows(none))
    return Rewards([float(sum(found)) for found in judged], parts)


def _open(spec: RewardSpec) -> tuple[str, RewardFunction]:
    name, settings = spec.name, spec.settings
    installed = {word for entry in registry.entries("align.rewards") for word in (entry.name, entry.qualified)}
    if name not in installed:
        path = Path(name).expanduser()
        if any((path / file).is_file() for file in ("run.json", "config.json", "adapter_config.json")):
            name, settings = "model", {"path": str(path.resolve()), **settings}
        elif ":" in name:
            name, settings = "function", {"function": name, **settings}
        elif "/" in name or path.exists():
            raise ConfigError(f"there is no reward model at {name}")
    entry = registry.find("align.rewards", name)
    plugin = registry.load(entry)
    label = (
        spec.name if name == spec.name else Path(spec.name).name if name == "model" else spec.name.rpartition(":")[2]
    )
    if not (isinstance(plugin, type) and issubclass(plugin, Reward)):
        if settings:
            raise ConfigError(
                f"method.rewards: {entry} is a plain function and takes no settings ({', '.join(settings)})"
            )
        return label, as_reward(plugin, label)
    place = Layer({"method": {"rewards": {name: settings}}}, default_place="RunConfig")
    values = validate(plugin.settings_type, settings, place, ("method", "rewards", name))
    with loading(f"{entry} cannot be set up"):
        return label, plugin(values)


def load_function(name: str) -> Callable[..., Any]:
    """Return the function ``package.module:function``, installed or in the current directory, or ``path/to/file.py:function``.

    Raises :class:`ConfigError` if there is none, and ``PluginError`` if its module fails.
    """
    module, _, attribute = name.rpartition(":")
    if not module or not attribute:
        raise ConfigError(
            f"{name!r} does not name a function: write package.module:function or path/to/file.py:function"
        )
    try:
        with loading(f"{name} cannot be loaded"):
            function: Callable[..., Any] = getattr(_module(module, attribute), attribute)
    except PluginError as error:
        if isinstance(error.__cause__, ImportError | AttributeError | OSError):
            raise ConfigError(f"there is no function {name}: {first_line(error.__cause__)}") from error
        raise
    if not callable(function):
        raise ConfigError(f"{name} is not a function")
    return function


def _module(name: str, attribute: str) -> ModuleType:
    """Import a module by name or by its file, if its code may run (:mod:`alignkit.system.trust`)."""
    file = Path(name).expanduser().resolve() if name.endswith(".py") else None
    package = name.partition(".")[0]
    if file or importlib.util.find_spec(package) is None:  # modules beside it can be imported as well
        sys.path.append(str(file.parent if file else Path.cwd()))
    plugins = {entry.value.partition(":")[0] for entry in registry.entries("align.rewards")}
    if name not in plugins | {"alignkit.demo.world"}:
        trust.require(f"{name}:{attribute}", [file] if file else source_files(package))
    if file is None:
        return import_module(name)
    key = f"align_file_{digest(str(file))[:12]}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[key] = module
    return sys.modules[key]


def as_reward(function: Callable[..., Any], label: str) -> RewardFunction:
    """Return a plain function as a reward.

    A function with a parameter ``completions`` is called once for all answers, with those of the lists ``prompts``,
    ``completions``, ``completion_ids`` and the data's columns that it has parameters for. TRL's reward functions work
    unchanged; as in TRL, answers to a conversation are messages. Any other function is called for each answer, with the
    prompt (text or messages) and the answer's text.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"reward {label} cannot be called: {error}") from error
    if "completions" not in parameters:
        return partial(_call_each, function, label)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def call_once(answers: Sequence[Answered]) -> Any:
        columns: dict[str, list[Any]] = {
            name: [answer.fields.get(name) for answer in answers] for answer in answers for name in answer.fields
        }
        columns |= {
            "prompts": [_as_turns(answer)[0] for answer in answers],
            "completions": [_as_turns(answer)[1] for answer in answers],
            "completion_ids": [list(answer.answer_ids) for answer in answers],
        }
        wanted = columns if takes_all else {name: columns[name] for name in parameters if name in columns}
        return _awaited(label, [function(**wanted)], [answers])[0]

    return call_once


def _call_each(function: Callable[..., Any], label: str, answers: Sequence[Answered]) -> list[Any]:
    values = []
    for answer in answers:
        with named(f"reward {label} failed on {_rows([answer])}"):
            values.append(function(answer.prompt, answer.answer))
    return _awaited(label, values, [[answer] for answer in answers])


def _awaited(label: str, values: list[Any], answers: Sequence[Sequence[Answered]]) -> list[Any]:
    """Return the values of a reward; an asynchronous function's are computed together, in a thread with a loop of its own."""
    if not any(map(inspect.isawaitable, values)):
        return values

    async def value_of(value: Any, asked: Sequence[Answered]) -> Any:
        with named(f"reward {label} failed on {_rows(asked)}"):
            return await value

    async def all_values() -> list[Any]:
        return await asyncio.gather(*map(value_of, values, answers))

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, all_values()).result()


def _rows(answers: Sequence[Answered]) -> str:
    """Return ``row prefs.jsonl:3``, or of several answers the first rows."""
    places = [*dict.fromkeys(answer.place or answer.id for answer in answers)]
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    return f"row{'s' if len(places) > 1 else ''} {', '.join(places[:5])}{more}"


def _as_turns(answer: Answered) -> tuple[Any, Any]:
    """Return prompt and answer as texts, or as messages if the prompt is a conversation."""
    if isinstance(answer.prompt, str):
        return answer.prompt, answer.answer
    return [dict(message) for message in answer.prompt], [{"role": "assistant", "content": answer.answer}]


def _is_number(value: object) -> bool:
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
