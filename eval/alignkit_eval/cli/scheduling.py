"""The options that choose a scheduler and its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click
from alignkit.errors import ConfigError

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--scheduler",
        metavar="NAME",
        default="local",
        show_default=True,
        help="What carries out the cells: local, ray, slurm or an installed one (align schedulers).",
    ),
    click.option(
        "--jobs",
        metavar="N",
        type=click.IntRange(min=1),
        help="Most cells at a time (default: as many as there is room for; one on a machine without accelerators).",
    ),
    click.option(
        "--gpus-per-cell",
        metavar="N",
        type=float,
        help="Accelerators of each cell; 0.5: two cells share one; 0: none (default: 1 where there are any).",
    ),
    click.option(
        "--cpus-per-cell",
        metavar="N",
        type=click.IntRange(min=1),
        help="CPU threads of each cell in a process of its own (default: 1).",
    ),
    click.option(
        "--address", metavar="A", help="Address of the scheduler's cluster: auto, HOST:PORT, ray://HOST:PORT."
    ),
    click.option(
        "--scheduler-set",
        "scheduler_sets",
        metavar="KEY=VALUE",
        multiple=True,
        help="Any other setting of the scheduler, e.g. retries=5 (docs/scale.md).",
    ),
)


def scheduling_options(command: Decorated) -> Decorated:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen(scheduler: str, scheduler_sets: Sequence[str], **given: Any) -> dict[str, Any]:
    """Return the name and the settings of the scheduler: ``{"scheduler": ..., "options": {...}}``."""
    options = {key: value for key, value in given.items() if value is not None}
    return {"scheduler": scheduler, "options": keys_of(scheduler_sets, "--scheduler-set", options)}


def keys_of(texts: Sequence[str], option: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return ``given`` with the values of ``KEY=VALUE`` texts; raises ``ConfigError`` for a key that is set twice."""
    from alignkit.settings.yaml_files import parse_value

    found = dict(given or {})
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} {text}: write KEY=VALUE")
        if key in found:
            raise ConfigError(f"{option} {text}: {key} is set twice")
        found[key] = parse_value(value)
    return found
