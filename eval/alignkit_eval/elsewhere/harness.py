"""Results of lm-eval's command line: ``results_DATE.json`` beside ``samples_TASK_DATE.jsonl`` (``--log_samples``)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit import SuiteResult
from alignkit.errors import ConfigError
from alignkit.system.files import InvalidJSON, jsonl_rows, parse_json

from alignkit_eval.elsewhere import named_twice
from alignkit_eval.suites.task_metrics import measure, task_items

_DATED = re.compile(r"_(\d{4}-\d\d-\d\dT[\d.-]+)\.json$")
_RESAMPLES = 200
"""Bootstrap draws for metrics that are not means, as the lm-eval suite has by default."""

_SAME = ("limit", "gen_kwargs")
_OF_TASK = ("n-shot", "versions")
_ASKED = ("system_instruction", "fewshot_as_multiturn")
"""What two results must have in common to be compared: of ``config``, of each task, of the whole run."""


def read_lm_eval(path: Path) -> list[SuiteResult]:
    """Return the result of every task of a run of lm-eval, from its ``results_DATE.json`` or a directory that has one.

    The numbers and intervals are those of the lm-eval suite on the same samples. Raises :class:`ConfigError` where samples are
    missing.
    """
    file = _results_file(path)
    if file is None:
        return []
    try:
        found = parse_json(file.read_bytes())
    except InvalidJSON as error:
        raise ConfigError(f"{file}: {error}") from error
    if not isinstance(found, Mapping) or not {"results", "configs", "n-samples"} <= found.keys():
        return []
    date = _DATED.search(file.name)
    return [_task_result(found, task, file, date[1] if date else "") for task in sorted(found["configs"])]


def _task_result(found: Mapping[str, Any], task: str, file: Path, date: str) -> SuiteResult:
    """Return the result of one task, as a suite of its name."""
    rows = _samples(file.parent / f"samples_{task}_{date}.jsonl", found["n-samples"].get(task, {}))
    items = task_items(task, rows)
    reported, better = found["results"][task], found.get("higher_is_better", {}).get(task, {})
    made = measure(task, rows, items, reported, _aggregations(found["configs"][task]), better, _RESAMPLES)
    content = hashlib.sha256()
    for row in rows:
        content.update(repr((row["doc_id"], row.get("doc_hash"), row.get("target_hash"))).encode())
    config = found.get("config", {})
    return SuiteResult(
        suite=task,
        n=len(items),
        clusters=len({item["cluster"] for item in items.values()}),
        metrics=made.metrics,
        items=list(items.values()),
        settings={key: config.get(key) for key in _SAME}
        | {key: found.get(key, {}).get(task) for key in _OF_TASK}
        | {key: found.get(key) for key in _ASKED}
        | {"apply_chat_template": found.get("chat_template") is not None},
        contrasts=made.contrasts,
        provenance={
            "content": content.hexdigest(),
            "plugin": f"lm-eval {found.get('lm_eval_version')}",
            "model": found.get("model_name"),
        },
        notes=made.notes,
        draws=made.draws,
    )


def _results_file(path: Path) -> Path | None:
    """Return the results file that ``path`` is or has; lm-eval puts those of a model into a directory of its own."""
    if path.is_file():
        return path if path.suffix == ".json" and _DATED.search(path.name) else None
    for pattern in ("*.json", "*/*.json"):
        if files := sorted(file for file in path.glob(pattern) if _DATED.search(file.name)):
            if len(files) > 1:
                raise named_twice(path, files)
            return files[0]
    return None


def _samples(file: Path, count: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the samples of a task as lm-eval has them in memory; raises :class:`ConfigError` where some are missing."""
    if not file.is_file():
        raise ConfigError(f"{file} is missing: run lm-eval with --log_samples, so that items can be paired")
    rows = []
    for place, row in jsonl_rows(file, error=ConfigError):
        if not {"doc_id", "doc", "filter", "metrics"} <= row.keys():
            raise ConfigError(f"{place}: a sample of lm-eval has doc_id, doc, filter and metrics")
        arguments = row.get("arguments")
        if isinstance(arguments, Mapping):
            row["arguments"] = [tuple(each.values()) for each in arguments.values() if isinstance(each, Mapping)]
        rows.append(row)
    documents, expected = len({row["doc_id"] for row in rows}), count.get("effective", len(rows))
    if documents != expected:
        raise ConfigError(f"{file} has {documents} of {expected} documents: copy the whole file")
    return rows


def _aggregations(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the aggregation of each of a task's metrics; those that lm-eval does not know by name are left to their items."""
    import lm_eval.api.metrics  # noqa: F401  # registers the aggregations
    from lm_eval.api.registry import get_aggregation

    listed: Sequence[Any] = config.get("metric_list") or ()
    named = {each["metric"]: each.get("aggregation") for each in listed if isinstance(each, Mapping)}
    found = {metric: get_aggregation(name) for metric, name in named.items() if isinstance(name, str)}
    return {metric: function for metric, function in found.items() if function is not None}
