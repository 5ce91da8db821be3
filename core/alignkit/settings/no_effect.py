"""Keys that would change nothing beside a run's other keys."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.config import DataConfig, RunConfig, TrainConfig
from alignkit.errors import ConfigError, first_line

if TYPE_CHECKING:
    from transformers import TrainingArguments


def _finds_best(a: TrainingArguments) -> bool:
    by_metric = a.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    return bool(a.load_best_model_at_end or a.save_strategy == "best" or by_metric)


_NEEDS: Mapping[str, tuple[Callable[[TrainingArguments], bool], str]] = {
    "eval_steps": (lambda a: a.eval_strategy == "steps", "set train.eval_strategy: steps"),
    "eval_delay": (lambda a: a.eval_strategy != "no", "set train.eval_strategy: steps or epoch"),
    "metric_for_best_model": (_finds_best, "set train.stop_on, or train.load_best_model_at_end: true"),
    "greater_is_better": (_finds_best, "set train.stop_on, or train.load_best_model_at_end: true"),
    "activation_checkpointing_kwargs": (
        lambda a: bool(a.activation_checkpointing),
        "set train.activation_checkpointing: true",
    ),
    "num_train_epochs": (lambda a: a.max_steps <= 0, "train.max_steps is set as well: remove one of them"),
}
"""Key -> whether it has an effect, and what to do if it has none."""


_DATA: Mapping[str, tuple[Callable[[DataConfig], bool], str]] = {
    "fold": (lambda d: d.folds is not None, "data.folds"),
    "steps_per_group": (lambda d: d.group_by is not None, "data.group_by"),
    "exhausted": (lambda d: bool(d.phases) or any(s.weight for s in d.sources), "a weight for every source"),
    "interleave": (lambda d: len(d.sources) > 1 or d.group_by is not None, "several data.sources"),
    "streaming": (lambda d: not all(map(_is_local, (part.source for part in d.parts))), "a hub data set or a URL"),
}
"""Key of ``data:`` -> whether it has an effect, and what it needs."""


def _is_local(name: str) -> bool:
    return name == "demo" or Path(name).expanduser().exists()


def refuse_idle(config: RunConfig) -> None:
    """Raise :class:`ConfigError` for a key of ``data:`` or ``model:`` that is not at its default and changes nothing."""
    data = config.data
    for key, (has_effect, needed) in _DATA.items():
        if getattr(data, key) != DataConfig.model_fields[key].default and not has_effect(data):
            raise ConfigError(f"data.{key} has no effect without {needed}")
    if data.check.script is None and data.check.script_share != type(data.check)().script_share:
        raise ConfigError("data.check.script_share has no effect without data.check.script")
    if config.model.revision is not None and _is_local(config.model.name):
        raise ConfigError(f"model.revision has no effect: {config.model.name} is not on the hub")


def refuse_without_effect(train: TrainConfig, arguments: TrainingArguments) -> None:
    """Raise :class:`ConfigError` for a key that is not at its default and changes nothing."""
    given = [key for key, value in train.arguments.items() if value != _default(key)]
    for key in (key for key in given if key in _NEEDS):
        has_effect, remedy = _NEEDS[key]
        if not has_effect(arguments):
            raise ConfigError(f"train.{key} has no effect: {remedy}")
    if train.early_stopping_threshold and train.early_stopping_patience is None and train.stop_on is None:
        raise ConfigError("train.early_stopping_threshold has no effect: set train.stop_on, or early_stopping_patience")
    for made, decider, keys in _MADE:
        with_it = _try(made, arguments, decider)
        for key in (key for key in given if key in keys and with_it is not None):
            without = copy.copy(arguments)
            setattr(without, key, _default(key))
            if _try(made, without, decider) == with_it:
                hint = " (constant_with_warmup has a warm-up)" if key == "warmup_steps" else ""
                chosen = getattr(arguments, decider)
                raise ConfigError(
                    f"train.{key} has no effect with train.{decider}: {getattr(chosen, 'value', chosen)}{hint}"
                )


def _default(key: str) -> Any:
    from transformers import TrainingArguments

    return getattr(TrainingArguments, key, None)


def _optimizer(arguments: TrainingArguments) -> Any:
    from transformers import Trainer

    return Trainer.get_optimizer_cls_and_kwargs(arguments)


def _schedule(arguments: TrainingArguments, steps: int = 20) -> Any:
    """Return the learning rate of every step as a share, or the settings of a schedule that follows a metric."""
    import torch
    from transformers import get_scheduler

    made: Any = get_scheduler(
        arguments.lr_scheduler_type,
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]),
        arguments.get_warmup_steps(steps),
        steps,
        arguments.lr_scheduler_kwargs,
    )
    lambdas = getattr(made, "lr_lambdas", None)
    return made.state_dict() if lambdas is None else [lambdas[0](step) for step in range(steps)]


_MADE = (
    (_optimizer, "optim", ("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "optim_target_modules")),
    (_schedule, "lr_scheduler_type", ("warmup_steps", "lr_scheduler_kwargs")),
)
"""What a key decides the making of, the key that names it, and the keys of its details."""


def _try(make: Callable[[TrainingArguments], Any], arguments: TrainingArguments, decider: str) -> Any:
    """Return what is made; None where the model is needed for it."""
    try:
        return make(arguments)
    except TypeError as error:
        raise ConfigError(f"train.{decider}: {first_line(error)}") from error
    except Exception:  # a package or a model that is missing is reported where it is used
        return None
