"""What trackers record of a comparison: its arms, differences and verdict as tables, in the group of the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.contract.registry import provided

from alignkit_eval.comparison.looks import Race
from alignkit_eval.comparison.result import Comparison, ContrastResult
from alignkit_eval.report.race import departure_line

Rows = list[dict[str, Any]]


def track_comparison(
    directory: Path,
    runs: Sequence[Path],
    values: Mapping[str, Any],
    comparison: Comparison | None,
    notes: Sequence[str] = (),
    race: Race | None = None,
) -> list[str]:
    """Record the comparison in ``directory`` in the trackers that the runs name; return what failed."""
    record = provided("align.reports", "group")
    tables = comparison_tables(comparison, notes, race)
    return list(record(directory, runs, values, tables)) if record and tables else []


def comparison_tables(
    comparison: Comparison | None, notes: Sequence[str] = (), race: Race | None = None
) -> dict[str, Rows]:
    """Return the tables by name, those without rows left out."""
    said = {"verdict": [comparison.verdict] if comparison else [], "note": [*(comparison.notes if comparison else ())]}
    said["note"] += [note for note in notes if note not in said["note"]]
    tables: dict[str, Rows] = {
        "verdict": [{"kind": kind, "text": text} for kind, texts in said.items() for text in texts]
    }
    if comparison is not None:
        tables["arms"] = [
            {"arm": arm.name, "seeds": len(arm.seeds), "suite": suite, "metric": metric, **estimate._asdict()}
            for arm in comparison.arms
            for suite, metrics in arm.metrics.items()
            for metric, estimate in metrics.items()
        ]
        tables["differences"] = [_difference(contrast) for contrast in comparison.contrasts]
    if race is not None:
        tables["race"] = [
            {"arm": gone.arm, "share": look.rung, "level": look.level, "p": gone.p, "why": departure_line(look, gone)}
            for look, gone in race.departures
        ]
    return {name: rows for name, rows in tables.items() if rows}


def _difference(one: ContrastResult) -> dict[str, Any]:
    found = {"arm": one.arm, "baseline": one.baseline, "suite": one.suite, "metric": one.metric, "difference": one.diff}
    return found | {"low": one.low, "high": one.high, "p": one.p_holm, "items": one.n, "outcome": one.outcome}
