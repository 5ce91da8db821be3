"""Loading of rewards, and scoring of answers with their weighted sum.

A reward is a plugin under ``align.rewards``, a trained reward model given by its path, or any ``package.module:function``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from alignkit.contract import Answered, Reward, RewardSpec, registry
from alignkit.errors import ConfigError, RunFailedError
from alignkit.settings.layers import Layer
from alignkit.settings.messages import validate

RewardFunction = Callable[[Sequence[Answered]], Sequence[float]]


@dataclass(frozen=True)
class LoadedReward:
    label: str
    weight: float
    function: RewardFunction

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return the rewards; raises :class:`RunFailedError` naming the rows where they are not finite numbers."""
        values = list(self.function(answers)) if answers else []
        if len(values) != len(answers):
            raise RunFailedError(f"reward {self.label} returned {len(values)} numbers for {len(answers)} answers")
        bad = [(answer.id, value) for answer, value in zip(answers, values, strict=True) if not _is_number(value)]
        if bad:
            names = ", ".join(dict.fromkeys(row for row, _ in bad[:5])) + (" and more" if len(bad) > 5 else "")
            first = f"reward {self.label} is not a finite number ({bad[0][1]!r})"
            raise RunFailedError(f"{first} for {len(bad)} answers, rows {names}")
        return [float(value) for value in values]


@dataclass(frozen=True)
class Rewards:
    """Weighted sum of several rewards, and each of them by label; all of length ``[answers]``."""

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
    """Score the answers with every reward and sum them by weight."""
    parts = {reward.label: reward(answers) for reward in rewards}
    weights = {reward.label: reward.weight for reward in rewards}
    total = [sum(weights[label] * values[i] for label, values in parts.items()) for i in range(len(answers))]
    return Rewards(total, parts)


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
    return label, plugin(validate(plugin.settings_type, settings, place, ("method", "rewards", name)))


def load_function(name: str) -> Callable[..., Any]:
    """Return the function named ``package.module:function``; raises :class:`ConfigError` if there is none."""
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ConfigError(f"{name!r} does not name a function: write package.module:function")
    try:
        function: Callable[..., Any] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"there is no function {name}: {error}") from error
    if not callable(function):
        raise ConfigError(f"{name} is not a function")
    return function


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
        return lambda answers: [function(answer.prompt, answer.answer) for answer in answers]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def call_once(answers: Sequence[Answered]) -> Sequence[float]:
        columns: dict[str, list[Any]] = {
            name: [answer.fields.get(name) for answer in answers] for answer in answers for name in answer.fields
        }
        columns |= {
            "prompts": [_as_turns(answer)[0] for answer in answers],
            "completions": [_as_turns(answer)[1] for answer in answers],
            "completion_ids": [list(answer.answer_ids) for answer in answers],
        }
        wanted = columns if takes_all else {name: columns[name] for name in parameters if name in columns}
        values: Sequence[float] = function(**wanted)
        return values

    return call_once


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
