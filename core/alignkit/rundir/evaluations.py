"""Evaluation results on disk: SUITE.json and SUITE.items.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from alignkit.contract import Contrast, Omission, SuiteResult
from alignkit.errors import ConfigError, first_line
from alignkit.rundir.record import StoredEstimates, validated
from alignkit.system.files import InvalidJSON, jsonl_rows, parse_json, write_json, write_jsonl
from alignkit.system.manifest import sealed, sha256, unsealed, warn_changed


def write_evaluation(directory: Path, result: SuiteResult, *, target: str) -> Path:
    """Write a suite's result as ``SUITE.json`` and ``SUITE.items.jsonl`` into ``directory``; return the path of the former."""
    path = directory / f"{result.suite}.json"
    path.unlink(missing_ok=True)  # so that the items of one result never lie beside the metrics of another
    items = directory / f"{result.suite}.items.jsonl"
    write_jsonl(items, result.items)
    fields = {name: value for name, value in vars(result).items() if name != "items"}
    write_json(path, sealed({"suite": result.suite, "target": target} | fields | {"items_sha256": sha256(items)}))
    return path


class _Stored(BaseModel):
    """SUITE.json; keys written by other versions are ignored."""

    n: int
    clusters: int
    metrics: StoredEstimates
    settings: dict[str, Any]
    contrasts: list[Contrast]
    provenance: dict[str, Any]
    left_out: list[Omission] = []
    notes: list[str] = []
    draws: dict[str, list[float | None]] = {}
    items_sha256: str | None = None


def read_evaluation(directory: Path, suite: str) -> SuiteResult:
    """Read a suite's result; raises ``ConfigError`` if it is missing, unreadable or has values of another type."""
    path = directory / f"{suite}.json"
    try:
        stored = validated(_Stored, unsealed(parse_json(path.read_bytes()), path), path, ConfigError)
        file = directory / f"{suite}.items.jsonl"
        items = list(jsonl_rows(file, error=ConfigError))
        if stored.items_sha256 not in (None, sha256(file)):
            warn_changed(file)
    except (OSError, InvalidJSON) as error:
        raise ConfigError(f"{path} is not a readable result of suite {suite!r}: {first_line(error)}") from error
    for place, item in items:
        if not {"id", "cluster"} <= item.keys():
            raise ConfigError(f"{place}: an item of suite {suite!r} needs the keys id and cluster")
    fields = {name: value for name, value in vars(stored).items() if name != "items_sha256"}
    return SuiteResult(suite=suite, items=[item for _, item in items], **fields)
