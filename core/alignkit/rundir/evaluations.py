"""Evaluation results on disk: SUITE.json and SUITE.items.jsonl."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from alignkit.contract.suites import Contrast, SuiteResult
from alignkit.errors import ConfigError, DataError
from alignkit.rundir.record import stored_estimate
from alignkit.system.files import read_jsonl, write_json, write_jsonl


def write_evaluation(directory: Path, result: SuiteResult, *, target: str) -> Path:
    """Write a suite's result as ``SUITE.json`` and ``SUITE.items.jsonl`` into ``directory``; return the path of the former."""
    write_jsonl(directory / f"{result.suite}.items.jsonl", result.items)
    path = directory / f"{result.suite}.json"
    write_json(
        path,
        {
            "suite": result.suite,
            "target": target,
            "n": result.n,
            "clusters": result.clusters,
            "metrics": result.metrics,
            "settings": result.settings,
            "contrasts": [asdict(contrast) for contrast in result.contrasts],
            "provenance": result.provenance,
        },
    )
    return path


def read_evaluation(directory: Path, suite: str) -> SuiteResult:
    """Read a suite's result; raises ``ConfigError`` if it is missing or unreadable."""
    path = directory / f"{suite}.json"
    try:
        stored = json.loads(path.read_bytes())
        items = read_jsonl(directory / f"{suite}.items.jsonl")
        metrics = {name: stored_estimate(entry) for name, entry in stored["metrics"].items()}
        contrasts = [Contrast(**entry | {"verdict": tuple(entry["verdict"])}) for entry in stored["contrasts"]]
        return SuiteResult(
            suite,
            stored["n"],
            stored["clusters"],
            metrics,
            items,
            settings=stored["settings"],
            contrasts=contrasts,
            provenance=stored["provenance"],
        )
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise ConfigError(f"{path} is not a readable result of suite {suite!r}: {error}") from error
