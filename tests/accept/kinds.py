"""Acceptance check of the statistics by kind of metric: coverage, type I error, and equivalence that is wrongly shown."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from alignkit_eval.comparison import flips

TRIALS = {20: 2000, 50: 1500, 200: 800, 1000: 400}
"""Items -> trials of a size; 2,000 have a standard error of 0.5 %, 400 one of 1.1 %."""

FLIPS = 1_999
"""Random sign flips of a test, for time: it keeps its level with any number of them (20,000 in comparisons)."""

ERROR, LOWEST = 0.06, 0.93
"""Most type I errors, and least coverage; three standard errors of the simulation are added."""


def table() -> list[dict[str, Any]]:
    """Return a row for every kind of metric, size, with and without clusters, printed as it is known.

    Intervals of the method's question count an item's noise that differs between seeds twice: they are conservative.
    """
    from tests.helpers.kinds import KINDS, SEEDS, SIZES, Shape, coverage, rates

    rows = []
    for items in SIZES:
        for clustered in (False, True):
            for kind in KINDS:
                trials, shape = TRIALS[items], Shape(items, clustered)
                with patch.object(flips, "_FLIPS", FLIPS):
                    models = rates(kind, shape, "models", trials)
                    method = rates(kind, Shape(items, clustered, SEEDS, 0.1), "method", trials)
                about = {"kind": kind, "items": items, "clustered": clustered, "trials": trials}
                interval = coverage(kind, shape, 4 * trials)
                rows.append(about | {"interval": interval, "models": models, "method": method})
                print(
                    f"      {kind:<15} n {items:>4} {'clusters' if clustered else '':<8} interval {interval:.3f}; models: "
                    f"coverage {models[0]:.3f} type I {models[1]:.3f} TOST {models[2]:.3f}; method: "
                    f"{method[0]:.3f} {method[1]:.3f} {method[2]:.3f}",
                    flush=True,
                )
    return rows


def missed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows outside the limits."""
    found = []
    for row in rows:
        slack = 3 * (0.05 * 0.95 / row["trials"]) ** 0.5
        for name in ("models", "method"):
            coverage, type_one, equivalence = row[name]
            if (
                type_one > ERROR + slack
                or equivalence > 0.05 + slack
                or min(coverage, row["interval"]) < LOWEST - slack
            ):
                found.append({"question": name, **row})
    return found
