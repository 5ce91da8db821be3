"""Outputs of RewardBench: ``MODEL_all.jsonl`` (``rewardbench --save_all``), and its tables of scores (``eval-set-scores``)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit import Contrast, SuiteResult
from alignkit.errors import ConfigError
from alignkit.system.files import InvalidJSON, jsonl_rows, parse_json

from alignkit_eval.statistics import clustered_score

_TABLE = {"id", "subset", "results"}


def read_rewardbench(path: Path) -> list[SuiteResult]:
    """Return the accuracy over all rows and of each subset from an output of RewardBench; empty for another form.

    Rows of ``--save_all`` have scores and no ids: two files of one data set are paired by line. A tie counts as wrong, as in
    RewardBench. Raises :class:`ConfigError` for rows without numbers.
    """
    if not path.is_file() or path.suffix not in (".json", ".jsonl"):
        return []
    items = _lines(path) if path.suffix == ".jsonl" else _table(path)
    if items is None:
        return []
    subsets = [name for name in dict.fromkeys(item["task"] for item in items) if name]
    wheres: dict[str, dict[str, str]] = {"accuracy": {}} | {
        f"accuracy/{name}": {"task": name} for name in subsets if len(subsets) > 1
    }
    contrasts = [Contrast(name, "correct", where=where, bounds=(0, 1)) for name, where in wheres.items()]
    metrics = {}
    for contrast in contrasts:
        counted = [item for item in items if contrast.counts(item)]
        metrics[contrast.metric] = clustered_score(
            [item["correct"] for item in counted], [item["cluster"] for item in counted]
        )
    content = hashlib.sha256(repr([(item["id"], item["task"]) for item in items]).encode()).hexdigest()
    notes = (
        []
        if path.suffix == ".json"
        else ["rows have no ids and are paired by line: both files must be of one data set"]
    )
    result = SuiteResult(
        suite="rewardbench",
        n=len(items),
        clusters=len({item["cluster"] for item in items}),
        metrics=metrics,
        items=items,
        contrasts=contrasts,
        provenance={"content": content},
        notes=notes,
    )
    return [result]


def _lines(path: Path) -> list[dict[str, Any]] | None:
    """Return the items of a file of scores, one pair a line."""
    items: list[dict[str, Any]] = []
    for place, row in jsonl_rows(path, error=ConfigError):
        scores = [_number(row.get(key)) for key in ("chosen", "rejected")]
        if row.keys() != {"chosen", "rejected"} or (None in scores and not items):
            return None
        if None in scores:
            raise ConfigError(f"{place}: a row of RewardBench has a number for chosen and for rejected")
        chosen, rejected = (float(score) for score in scores if score is not None)
        name = f"line {len(items) + 1}"
        items.append({"id": name, "cluster": name, "task": "", "correct": float(chosen > rejected)})
    return items or None


def _table(path: Path) -> list[dict[str, Any]] | None:
    """Return the items of a table: columns as lists, or as pandas writes them, by row number."""
    try:
        found = parse_json(path.read_bytes())
    except InvalidJSON:
        return None
    if not isinstance(found, Mapping) or not found.keys() >= _TABLE:
        return None
    columns = [list(c.values()) if isinstance(c := found[key], Mapping) else c for key in ("id", "subset", "results")]
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        raise ConfigError(f"{path}: the columns id, subset and results are lists of one length")
    items = []
    for number, (name, subset, result) in enumerate(zip(*columns, strict=True), start=1):
        if (value := _number(result)) is None:
            raise ConfigError(f"{path}: row {number} has no number in results")
        items.append({"id": f"{subset}:{name}", "cluster": f"{subset}:{name}", "task": str(subset), "correct": value})
    return items


def _number(value: Any) -> float | None:
    """Return a score, which some reward models give in a list of one."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return float(value) if isinstance(value, bool | int | float) else None
