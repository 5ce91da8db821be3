"""Evaluation results on disk: SUITE.json and SUITE.items.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

from alignkit.contract import Contrast, SuiteResult
from alignkit.errors import ConfigError, DataError
from alignkit.rundir.record import stored_estimate
from alignkit.system.files import read_jsonl, write_json, write_jsonl


def write_evaluation(directory: Path, result: SuiteResult, *, target: str) -> Path:
    """Write a suite's result as ``SUITE.json`` and ``SUITE.items.jsonl`` into ``directory``; return the path of the former."""
    path = directory / f"{result.suite}.json"
    path.unlink(missing_ok=True)  # so that the items of one result never lie beside the metrics of another
    write_jsonl(directory / f"{result.suite}.items.jsonl", result.items)
    fields = {name: value for name, value in vars(result).items() if name != "items"}
    write_json(path, {"suite": result.suite, "target": target} | fields)
    return path


def read_evaluation(directory: Path, suite: str) -> SuiteResult:
    """Read a suite's result; raises ``ConfigError`` if it is missing or unreadable."""
    path = directory / f"{suite}.json"
    try:
        stored = json.loads(path.read_bytes())
        items = read_jsonl(directory / f"{suite}.items.jsonl")
        metrics = {name: stored_estimate(entry) for name, entry in stored["metrics"].items()}
        contrasts = [Contrast(**entry | {"verdict": tuple(entry["verdict"])}) for entry in stored["contrasts"]]
        others = {name: stored[name] for name in ("n", "clusters", "settings", "provenance")}
        return SuiteResult(suite=suite, metrics=metrics, items=items, contrasts=contrasts, **others)
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise ConfigError(f"{path} is not a readable result of suite {suite!r}: {error}") from error
