"""Whether the cells of a sweep measure what their comparison is to be decided by."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from alignkit import RunConfig
from alignkit.contract import registry
from alignkit.errors import ConfigError, suggest


def require_measured(config: RunConfig, race_objective: Sequence[str], stored: Path | None) -> None:
    """Raise :class:`ConfigError` where a cell would be trained and its suites had no metric of the objective.

    ``stored``: the file of the sweep, where it is resumed.
    """
    key = ("" if stored is None else f"{stored}: ") + ("race.objective" if race_objective else "compare.objective")
    suites = {name: registry.load_suite(name)[1].metrics for name in config.eval.suites}
    if any(metrics is None for metrics in suites.values()):
        return  # known only once a model is evaluated
    known = [(metric, f"{suite}/{metric}") for suite, metrics in suites.items() for metric in metrics or ()]
    for name in race_objective or config.compare.objective or ():
        if not any(fnmatchcase(name, pattern) for both in known for pattern in both):
            hint = suggest(name, [metric for metric, _ in known])
            raise ConfigError(
                f"{key}: the cells do not measure {name}{hint}: name a metric of eval.suites ({', '.join(suites)}: "
                f"{', '.join(metric for metric, _ in known)}), or add the suite that measures it"
            )
