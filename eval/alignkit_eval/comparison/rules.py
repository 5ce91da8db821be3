"""What decides a comparison: the objective, the guards, and the margins within which a difference counts as none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from alignkit import Contrast
from alignkit.errors import ConfigError, suggest

Contrasts = Mapping[str, Sequence[Contrast]]
"""Contrasts by suite."""


@dataclass(frozen=True)
class Rules:
    """Names of metrics, ``METRIC`` or ``SUITE/METRIC``; None: as the suites say."""

    objective: tuple[str, ...] | None = None
    """Metrics that decide which arm is better: there is a winner only where all of them agree."""
    guards: tuple[str, ...] | None = None
    """Metrics that must not be worse for a winner."""
    margins: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def recorded(cls, config: Mapping[str, Any]) -> Rules:
        """Return the rules of a run's configuration."""
        found = config.get("compare") or {}
        names = {key: None if found.get(key) is None else tuple(found[key]) for key in ("objective", "guards")}
        return cls(**names, margins=dict(found.get("margins") or {}))

    def over(self, other: Rules) -> Rules:
        """Return these rules, with those of ``other`` where these say nothing."""
        return Rules(
            other.objective if self.objective is None else self.objective,
            other.guards if self.guards is None else self.guards,
            {**other.margins, **self.margins},
        )

    def require(self, suites: Contrasts) -> None:
        """Raise ``ConfigError`` for a name that no metric has, or a margin that is not a positive number."""
        for what, name in self._named():
            if not _find(suites, name):
                known = sorted({c.metric for found in suites.values() for c in found})
                raise ConfigError(f"{what} {name}: these runs have no such metric{suggest(name, known)}")
        for metric, margin in self.margins.items():
            if not 0 < margin < math.inf:
                raise ConfigError(f"margin of {metric}: {margin:g} is not a positive number")
        if both := sorted({*(self.objective or ())} & {*(self.guards or ())}):
            raise ConfigError(f"{both[0]} is in the objective and among the guards: leave it out of one of them")

    def unmeasured(self, suites: Contrasts) -> list[str]:
        """Return a sentence for each name in the runs' configuration that no metric has."""
        return [
            f"compare: {what} {name} has no effect: these runs have no such metric"
            for what, name in self._named()
            if not _find(suites, name)
        ]

    def _named(self) -> list[tuple[str, str]]:
        return [
            *(("objective", name) for name in self.objective or ()),
            *(("guard", name) for name in self.guards or ()),
            *(("margin of", name) for name in self.margins),
        ]

    def applied(self, suites: Contrasts) -> dict[str, list[Contrast]]:
        """Return the contrasts with ``verdict``, ``guard`` and ``margin`` as these rules say.

        Without an objective of its own, a metric decides where its suite says so (accuracy by sum and by mean); a guard that
        could decide, such as quality, decides where nothing else does.
        """
        deciding = self._deciding(suites)
        return {
            suite: [self._applied(suite, contrast, deciding) for contrast in found] for suite, found in suites.items()
        }

    def _deciding(self, suites: Contrasts) -> dict[tuple[str, str], tuple[str, ...]]:
        """Return the deciding metrics, (suite, metric), with those that must agree."""
        if self.objective is not None:
            found = [_find(suites, name) for name in self.objective]
            return {key: self.objective for keys in found for key in keys} if all(found) else {}
        declared = [(suite, c) for suite, found in suites.items() for c in found if c.verdict]
        own = [(suite, c) for suite, c in declared if not c.guard] or declared
        return {(suite, c.metric): c.verdict for suite, c in own if c.metric not in (self.guards or ())}

    def _applied(self, suite: str, contrast: Contrast, deciding: Mapping[tuple[str, str], tuple[str, ...]]) -> Contrast:
        names = (contrast.metric, f"{suite}/{contrast.metric}")
        verdict = deciding.get((suite, contrast.metric), ())
        guard = contrast.guard if self.guards is None else any(name in self.guards for name in names)
        margin = next((self.margins[name] for name in names if name in self.margins), contrast.margin)
        return replace(contrast, verdict=verdict, guard=guard and not verdict, margin=margin)


def recorded_rules(configs: Sequence[Mapping[str, Any]], notes: list[str]) -> Rules:
    """Return the rules of the first configuration; that others have different ones is added to ``notes``."""
    found = [Rules.recorded(config) for config in configs]
    if any(rules != found[0] for rules in found):
        notes.append("the runs' configurations have different sections compare: that of the first one is used")
    return found[0] if found else Rules()


def described(suites: Contrasts) -> dict[str, Any]:
    """Return the objective, guards and margins of contrasts as plain JSON types."""
    every = [contrast for found in suites.values() for contrast in found]
    rules = Rules(
        tuple(c.metric for c in every if c.verdict),
        tuple(c.metric for c in every if c.guard),
        {c.metric: c.margin for c in every if c.margin is not None},
    )
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(rules).items()}


def _find(suites: Contrasts, name: str) -> list[tuple[str, str]]:
    """Return the metrics, (suite, metric), that ``name`` means."""
    return [
        (suite, contrast.metric)
        for suite, found in suites.items()
        for contrast in found
        if name in (contrast.metric, f"{suite}/{contrast.metric}")
    ]
