"""The main metrics before and after training, for the terminal, pages and the model card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from alignkit.contract import Estimate
from alignkit.rundir.record import stored_estimate

Metrics: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Metrics of every suite, ``{suite: {name: Estimate or {value, low, high}}}``."""

TITLES = {
    ("prefs", "accuracy_sum"): "accuracy (sum)",
    ("prefs", "accuracy_mean"): "accuracy (mean)",
    ("prefs", "accuracy_ref"): "accuracy (vs start)",
    ("perplexity", "perplexity"): "perplexity",
    ("perplexity", "bits_per_byte"): "bits per byte",
}
"""Titles of the built-in suites' main metrics. Any other suite's metrics are all shown, under their own names."""


class Line(NamedTuple):
    """One metric before and after training (None: not measured)."""

    title: str
    before: Estimate | None
    after: Estimate | None
    suite: str = ""
    metric: str = ""

    @property
    def change(self) -> float | None:
        return None if self.before is None or self.after is None else self.after.value - self.before.value


def headline(before: Metrics, after: Metrics) -> list[Line]:
    """Return the main metrics of the suites in ``before`` and ``after``, the built-in ones first."""
    known = {suite for suite, _ in TITLES}
    names = [key for key in TITLES if key[1] in before.get(key[0], {}) or key[1] in after.get(key[0], {})]
    for suite in sorted((before.keys() | after.keys()) - known):
        names += [(suite, name) for name in after.get(suite, before.get(suite, {}))]
    return [Line(TITLES.get(key, key[1]), _estimate(before, *key), _estimate(after, *key), *key) for key in names]


def describe_metrics(before: Metrics, after: Metrics) -> list[str]:
    """Return a line for each main metric, for ``align status``."""
    shown = headline(before, after)
    return [f"{line.title}: {with_interval(line.before)} -> {with_interval(line.after)}" for line in shown]


def number(value: float) -> str:
    """Return a number as text: three decimals below 10, one below 1000, none above.

    >>> number(0.5154), number(2.2849), number(1234.5)
    ('0.515', '2.285', '1,234')
    """
    if not math.isfinite(value):
        return "not finite"
    bounds = ((10, ".3f"), (1000, ",.1f"), (1e6, ",.0f"), (math.inf, ".3g"))
    return next(f"{value:{form}}" for bound, form in bounds if abs(value) < bound)


def with_interval(estimate: Estimate | None) -> str:
    """Return ``value [low, high]``, the value alone if there is no interval, or a dash for None."""
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def signed(change: float | None) -> str:
    """Return a change with its sign, or a dash for None."""
    if change is None:
        return "-"
    return number(change) if change < 0 or not math.isfinite(change) else f"+{number(change)}"


def _estimate(metrics: Metrics, suite: str, name: str) -> Estimate | None:
    estimate: Estimate | None = stored_estimate(metrics.get(suite, {}).get(name))
    return estimate
