"""The scheduler that the options of a command choose, checked before anything is carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignkit import Scheduler
from alignkit.contract import registry
from alignkit.contract.guard import loading, running
from alignkit.errors import ConfigError, suggest
from alignkit.settings.layers import Layer
from alignkit.settings.messages import validate


def open_scheduler(name: str, options: Mapping[str, Any]) -> Scheduler[Any]:
    """Return a scheduler with its settings; :func:`make_ready` checks the rest.

    Raises:
        ConfigError: a setting is unknown or wrong.
        PluginError: the scheduler is unknown or broken.
    """
    entry = registry.find("align.schedulers", name)
    scheduler_type: type[Scheduler[Any]] = registry.load(entry)
    known = scheduler_type.settings_type.model_fields
    for key in options:
        if key not in known:
            hint = suggest(key, list(known)) or f" (it has {', '.join(known)})"
            raise ConfigError(f"scheduler {name} has no setting {key}{hint}")
    settings = validate(scheduler_type.settings_type, options, Layer(default_place=f"scheduler {name}"))
    share = settings.gpus_per_cell
    if share is not None and share > 1 and not share.is_integer():
        raise ConfigError(
            f"scheduler {name}: gpus_per_cell must be a whole number, or less than 1 for cells that share an accelerator, not {share:g}"
        )
    with loading(f"{entry} cannot be set up"):
        return scheduler_type(settings)


def make_ready(scheduler: Scheduler[Any]) -> None:
    """Raise ``ConfigError`` if the scheduler cannot be used here: a package, cluster or accelerator is missing."""
    with running(f"{registry.find('align.schedulers', scheduler.name)} failed"):
        scheduler.check()
