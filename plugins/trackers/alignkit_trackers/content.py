"""What of a run directory is recorded: evaluations as numbers, tables, plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.contract.registry import provided
from alignkit.errors import DataError
from alignkit.rundir.directory import RunDir
from alignkit.system.files import jsonl_rows, parse_json

Table = tuple[str, Sequence[Mapping[str, Any]]]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file, an empty one where there is no file."""
    return dict(parse_json(path.read_bytes())) if path.is_file() else {}


def group_of(directory: Path) -> str | None:
    """Return the name of the sweep or pipeline that a run directory lies in; None for a run of its own."""
    for parent in directory.absolute().parents[:2]:
        if any((parent / name).is_file() for name in ("sweep.yaml", "pipeline.json")):
            return parent.name
    return None


def before_values(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the evaluation of the start model in run.json as ``before/SUITE/METRIC``, with ``/low`` and ``/high``."""
    return _values(record, "before")


def after_values(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the evaluation of the trained model in run.json as ``after/SUITE/METRIC``, with ``/low`` and ``/high``."""
    return _values(record, "after")


def _values(record: Mapping[str, Any], when: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for suite, metrics in record.get("evaluation", {}).get(when, {}).items():
        for metric, estimate in metrics.items():
            value, low, high = _ends(estimate)
            named = {"": value, "/low": low, "/high": high}
            found |= {f"{when}/{suite}/{metric}{end}": number for end, number in named.items() if number is not None}
    return found


def _ends(estimate: Any) -> tuple[float | None, float | None, float | None]:
    """Return value, low and high of an estimate, of run.json (a mapping) or in memory (a named tuple)."""
    if isinstance(estimate, Mapping):
        return estimate.get("value"), estimate.get("low"), estimate.get("high")
    return estimate.value, estimate.low, estimate.high


def tables_of(directory: Path) -> Iterator[Table]:
    """Yield the comparison of the trained model with the start model, and the sample answers."""
    if (changes := provided("align.reports", "changes")) and (rows := changes(directory)):
        yield "evaluation", rows
    samples = RunDir(directory).samples
    if samples.is_file() and (rows := [row for _, row in jsonl_rows(samples, error=DataError)]):
        yield "samples", rows


def plots_of(directory: Path) -> list[Path]:
    """Return the plots of the run, by name."""
    return sorted(path for path in RunDir(directory).plots.glob("*") if path.suffix in (".png", ".svg"))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table in Markdown, each on one line."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in rows[0]) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")
