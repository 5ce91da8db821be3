"""The section ``compare`` of a configuration: names of metrics that no suite measures are refused before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from alignkit.config import CompareConfig, RunConfig
from alignkit.contract import registry
from alignkit.errors import ConfigError, suggest

Metrics = Mapping[str, Sequence[str] | None]
"""Suite -> names of its metrics; None: known only once it has evaluated a model."""


def refuse_comparison(config: RunConfig) -> None:
    """Raise :class:`ConfigError` for an objective or guards that cannot be meant, or a metric that no suite has."""
    compare = config.compare
    if compare.objective == []:
        raise ConfigError("compare.objective: it names no metric: name one, or remove the key")
    if both := [name for name in compare.objective or [] if name in (compare.guards or [])]:
        raise ConfigError(f"compare.guards: {both[0]} is in compare.objective as well: leave it out of one of them")
    wanted, suites = list(_named(compare)), [*config.eval.suites, *config.eval.during]
    measured = _metrics_of(suites) if wanted else {}
    for key, name in wanted:
        if not _has(measured, name):
            others = [e.name for e in registry.entries("align.suites") if e.built_in and e.name not in suites]
            _require(key, name, measured, _metrics_of(others))


def _metrics_of(suites: Sequence[str]) -> dict[str, Sequence[str] | None]:
    """Return the metrics of suites by name."""
    return {name: registry.load_suite(name)[1].metrics for name in suites}


def _named(compare: CompareConfig) -> Iterator[tuple[str, str]]:
    for key in ("objective", "guards"):
        yield from ((f"compare.{key}", name) for name in getattr(compare, key) or [])
    yield from ((f"compare.margins.{name}", name) for name in compare.margins)


def _require(key: str, name: str, measured: Metrics, others: Metrics) -> None:
    """Raise for a metric of no suite. ``others``: suites that the run does not evaluate, but ``align eval`` can later."""
    suite = name.partition("/")[0]
    unknown = suite not in others and any(known is None for known in measured.values())
    if unknown or _has(others, name, evaluated=False):
        return
    if suite not in {**measured, **others} and any(entry.name == suite for entry in registry.entries("align.suites")):
        return  # a third party's suite, whose code runs only where it is evaluated
    known = [metric for metrics in measured.values() for metric in metrics or ()]
    every = [*known, *(metric for metrics in others.values() for metric in metrics or ())]
    full = [f"{suite}/{metric}" for suite, metrics in {**measured, **others}.items() for metric in metrics or ()]
    hint = suggest(name, list(dict.fromkeys([*every, *full])))
    raise ConfigError(f"{key}: no suite has a metric {name}{hint} (this run measures {', '.join(known) or 'none'})")


def _has(suites: Metrics, name: str, *, evaluated: bool = True) -> bool:
    """Whether a suite has a metric of that name. Of suites that are not evaluated, ``*/*`` counts with the suite's name alone."""
    return any(
        fnmatchcase(name, f"{suite}/{pattern}")
        or (fnmatchcase(name, pattern) and (evaluated or not pattern.startswith("*")))
        for suite, metrics in suites.items()
        for pattern in metrics or ()
    )
