"""Logs of Inspect (``inspect eval``): ``.json``, and ``.eval`` where inspect-ai is installed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit import Contrast, SuiteResult
from alignkit.errors import ConfigError, first_line
from alignkit.system.files import InvalidJSON, parse_json

from alignkit_eval.elsewhere import named_twice
from alignkit_eval.statistics import clustered_score
from alignkit_eval.suites.task_metrics import TaskMetrics

_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Correct, partially correct, incorrect and no answer, as ``inspect_ai.scorer.value_to_float`` has them."""


def read_inspect(path: Path) -> list[SuiteResult]:
    """Return the result of an Inspect log, or of a directory that has one; empty for another form.

    A sample that was repeated (``--epochs``) has the mean of its epochs. Higher values are better: Inspect does not say.
    Raises :class:`ConfigError` for a log of an evaluation that did not end, and for samples without scores.
    """
    log = _log(path)
    if log is None:
        return []
    about = log["eval"]
    if log.get("status") != "success":
        raise ConfigError(f"{path}: the evaluation did not end (its status is {log.get('status')})")
    task, samples = str(about["task"]), log.get("samples") or []
    if not samples:
        raise ConfigError(f"{path} has no samples: run inspect eval without --no-log-samples")
    items: dict[str, dict[str, Any]] = {}
    content = hashlib.sha256()
    for sample in samples:
        name = f"{task}:{sample['id']}"
        cluster = (sample.get("metadata") or {}).get("cluster") or name
        if name not in items:
            items[name] = {"id": name, "cluster": str(cluster), "task": task}
            content.update(repr((name, sample.get("input"), sample.get("target"))).encode())
    whole = _metrics(path, task, samples, items)
    config = about.get("config", {})
    result = SuiteResult(
        suite="inspect",
        n=len(items),
        clusters=len({item["cluster"] for item in items.values()}),
        metrics=whole.metrics,
        items=list(items.values()),
        settings={"task": task, "version": about.get("task_version"), "arguments": about.get("task_args")}
        | {key: config.get(key) for key in ("epochs", "limit")},
        contrasts=whole.contrasts,
        provenance={
            "content": content.hexdigest(),
            "plugin": f"inspect {about.get('packages', {}).get('inspect_ai')}",
            "model": about.get("model"),
        },
        notes=whole.notes,
    )
    return [result]


def _metrics(
    path: Path, task: str, samples: Sequence[Mapping[str, Any]], items: Mapping[str, dict[str, Any]]
) -> TaskMetrics:
    """Return the metrics that every sample has, means over its epochs; the items get each one's value."""
    scores: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        for metric, value in _values(sample, f"{path}: sample {sample['id']!r}").items():
            scores.setdefault(metric, {}).setdefault(f"{task}:{sample['id']}", []).append(value)
    whole, own = TaskMetrics(), items.values()
    for metric, found in scores.items():
        if found.keys() != items.keys():
            whole.notes.append(f"{task}/{metric} is left out: {len(items) - len(found)} samples do not have it")
            continue
        for name, values in found.items():
            items[name][metric] = sum(values) / len(values)
        key = f"{task}/{metric}"
        whole.metrics[key] = clustered_score([item[metric] for item in own], [item["cluster"] for item in own])
        whole.contrasts.append(Contrast(key, metric, where={"task": task}))
    return whole


def _log(path: Path) -> Mapping[str, Any] | None:
    """Return the log that ``path`` is or has, as Inspect writes it to JSON."""
    if path.is_dir():
        files = sorted([*path.glob("*.eval"), *(file for file in path.glob("*.json") if _parsed(file) is not None)])
        if len(files) > 1:
            raise named_twice(path, files)
        return _log(files[0]) if files else None
    return _unpacked(path) if path.suffix == ".eval" else _parsed(path) if path.suffix == ".json" else None


def _parsed(file: Path) -> Mapping[str, Any] | None:
    try:
        log = parse_json(file.read_bytes())
    except (OSError, InvalidJSON):
        return None
    known = isinstance(log, Mapping) and isinstance(log.get("eval"), Mapping) and "task" in log["eval"]
    return log if known and "status" in log else None


def _unpacked(file: Path) -> Mapping[str, Any]:
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        raise ConfigError(
            f"{file} needs inspect-ai to be read: pip install inspect-ai, or convert it: inspect log convert --to json"
        ) from None
    try:
        log: Mapping[str, Any] = read_eval_log(str(file)).model_dump(mode="json")
    except Exception as error:  # of zip, zstd, pydantic
        raise ConfigError(f"{file} is not a readable Inspect log: {first_line(error)}") from error
    return log


def _values(sample: Mapping[str, Any], where: str) -> dict[str, float]:
    """Return the scores of a sample as numbers, by scorer, or by scorer and key where a scorer gives several."""
    if not (given := sample.get("scores")):
        why = str((sample.get("error") or {}).get("message", "")).partition("\n")[0]
        raise ConfigError(f"{where} has no score{': ' * bool(why)}{why}")
    found: dict[str, float] = {}
    for scorer, score in given.items():
        value = score["value"]
        several = value if isinstance(value, Mapping) else {"": value}
        for key, each in several.items():
            number = _GRADES.get(each) if isinstance(each, str) else each
            if isinstance(number, bool | int | float):
                found[f"{scorer}:{key}" if key else scorer] = float(number)
    return found
