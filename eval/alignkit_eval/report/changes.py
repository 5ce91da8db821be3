"""The comparison of a run's trained model with its start model, as rows of a table."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from alignkit import SuiteResult
from alignkit.errors import ConfigError
from alignkit.rundir.directory import RunDir
from alignkit.rundir.evaluations import read_evaluation

from alignkit_eval.comparison.compare import changes

ENDS = ("value", "low", "high")


def change_rows(run: Path) -> list[dict[str, Any]]:
    """Return a row for every metric of a run: before and after training with 95 % intervals, and the paired change.

    ``None`` is what was not measured: the start model, or a change without items in common.
    """
    directory = RunDir(run).evaluation
    before, after = _results(directory / "before"), _results(directory)
    paired, rows = changes(before, after), []
    for suite in {**before, **after}:
        metrics = [results[suite].metrics if suite in results else {} for results in (before, after)]
        for metric in {**metrics[0], **metrics[1]}:
            row: dict[str, Any] = {"suite": suite, "metric": metric}
            for when, found in zip(("before", "after"), metrics, strict=True):
                for end in ENDS:
                    row[when if end == "value" else f"{when}_{end}"] = getattr(found.get(metric), end, None)
            change = paired.get((suite, metric))
            row |= {"change": getattr(change, "diff", None), "change_low": getattr(change, "low", None)}
            row |= {"change_high": getattr(change, "high", None), "p": getattr(change, "p", None)}
            rows.append(row | {"items": getattr(change, "n", None)})
    return rows


def _results(directory: Path) -> dict[str, SuiteResult]:
    found = {}
    for path in sorted(directory.glob("*.json")):
        with suppress(ConfigError):  # not a suite's result
            found[path.stem] = read_evaluation(directory, path.stem)
    return found
