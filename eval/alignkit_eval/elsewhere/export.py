"""Results of suites in the form of lm-eval's command line, for tools that read that."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from alignkit import Contrast, SuiteResult
from alignkit.system.files import write_json, write_jsonl

_ITEM = ("id", "cluster", "task", "category", "prompt", "target", "answers", "logps")
"""What becomes part of a sample's ``doc``; the other keys of an item are numbers that the model got."""


def write_lm_eval(results: Mapping[str, SuiteResult], model: str, directory: Path) -> tuple[Path, list[str]]:
    """Write suites' results as ``results_DATE.json`` and ``samples_TASK_DATE.jsonl``; return the former and what is left out.

    A metric over all items of a suite belongs to a task of the suite's name, one over some of them to a task of its own.
    Perplexities are lm-eval's ``weighted_perplexity``. Left out are metrics that no item has a number for, and other ratios.
    """
    for old in [*directory.glob("results_*.json"), *directory.glob("samples_*.jsonl")]:
        old.unlink()
    date = datetime.now().isoformat().replace(":", "-")
    tasks: dict[str, dict[str, Any]] = {}
    left_out = []
    for suite, result in results.items():
        contrasts = {contrast.metric: contrast for contrast in result.contrasts}
        kept = {name: c for name, c in contrasts.items() if c.numerator and (c.denominator is None or c.log)}
        left_out += [f"{suite}: {name}" for name in result.metrics if name not in kept]
        for name, contrast in kept.items():
            task = _task(suite, contrast)
            if task not in tasks:
                items = [item for item in result.items if contrast.counts(item)]
                tasks[task] = {"result": result, "items": items, "metrics": {}}
            about = tasks[task]
            about["metrics"][name.removeprefix(f"{task}/")] = contrast, result.metrics[name].value
    for task, about in tasks.items():
        write_jsonl(
            directory / f"samples_{task}_{date}.jsonl", _samples(about["result"], about["items"], about["metrics"])
        )
    path = directory / f"results_{date}.json"
    write_json(path, _summary(tasks, model))
    return path, left_out


def _task(suite: str, contrast: Contrast) -> str:
    if "task" in contrast.where:
        return str(contrast.where["task"])
    return "_".join([suite, *(str(value).replace("/", "_") for value in contrast.where.values())])


def _samples(
    result: SuiteResult, items: Sequence[Mapping[str, Any]], metrics: Mapping[str, tuple[Contrast, float]]
) -> Iterator[dict[str, Any]]:
    """Yield a sample for each item and filter (``exact_match:strict`` is lm-eval's metric exact_match of the filter strict)."""
    filters: dict[str, dict[str, Contrast]] = {}
    for name, (contrast, _) in metrics.items():
        metric, _, chosen = name.partition(":")
        filters.setdefault(chosen or "none", {})[metric] = contrast
    content = str(result.provenance.get("content"))
    for chosen, contrasts in filters.items():
        for number, item in enumerate(items):
            doc = {key: item[key] for key in _ITEM if key in item}
            target = str(item.get("target", ""))
            yield {
                "doc_id": number,
                "doc": doc,
                "target": target,
                "arguments": {},
                "resps": [],
                "filtered_resps": [],
                "filter": chosen,
                "metrics": list(contrasts),
                "doc_hash": _hash(f"{content} {item['id']}"),
                "prompt_hash": _hash(str(item.get("prompt", ""))),
                "target_hash": _hash(target),
            } | {metric: _value(item, contrast) for metric, contrast in contrasts.items()}


def _value(item: Mapping[str, Any], contrast: Contrast) -> Any:
    """Return an item's number, or log-likelihood and weight: lm-eval's perplexities are of log-likelihoods."""
    number = item[contrast.numerator]
    return number if contrast.denominator is None else [-number, item[contrast.denominator]]


def _summary(tasks: Mapping[str, Mapping[str, Any]], model: str) -> dict[str, Any]:
    metrics = {task: about["metrics"] for task, about in tasks.items()}
    better = {task: {name: c.higher_is_better for name, (c, _) in found.items()} for task, found in metrics.items()}
    sizes = {task: len(about["items"]) for task, about in tasks.items()}
    return {
        "results": {
            task: {"alias": task}
            | {f"{name.replace(':', ',')}{'' if ':' in name else ',none'}": value for name, (_, value) in found.items()}
            for task, found in metrics.items()
        },
        "group_subtasks": {task: [] for task in tasks},
        "configs": {
            task: {
                "task": task,
                "metric_list": [
                    {
                        "metric": name.partition(":")[0],
                        "aggregation": "weighted_perplexity" if contrast.log else "mean",
                        "higher_is_better": contrast.higher_is_better,
                    }
                    for name, (contrast, _) in found.items()
                ],
            }
            for task, found in metrics.items()
        },
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": {task: about["result"].settings.get("num_fewshot") or 0 for task, about in tasks.items()},
        "higher_is_better": {
            task: {name.partition(":")[0]: higher for name, higher in found.items()} for task, found in better.items()
        },
        "n-samples": {task: {"original": size, "effective": size} for task, size in sizes.items()},
        "config": {"model": "alignkit", "model_args": {"pretrained": model}, "limit": None, "gen_kwargs": {}},
        "model_name": model,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
