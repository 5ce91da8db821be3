"""Metrics of lm-eval's tasks: lm-eval's own numbers, with intervals.

Means, perplexities and bits per byte have intervals by the formulas of :mod:`alignkit_eval.statistics`. Every other metric (BLEU,
F1, a task's own function) has one by the bootstrap: clusters of documents are drawn with replacement, the task's aggregation
gives a value for each draw, and the interval is that of the central 95 % (Efron and Tibshirani 1993, section 13.3), a little wider for
few clusters. The draws are kept, so that two models are compared on the same ones.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from alignkit import Contrast, Estimate
from scipy import special

from alignkit_eval.statistics import (
    LEVEL,
    cluster_codes,
    clustered_ratio,
    clustered_score,
    nonnegative,
    quantile,
    transformed,
)

Aggregation: TypeAlias = Callable[[list[Any]], Any]

_UNDEFINED = 0.1
"""Share of draws in which a metric may be undefined, such as the F1 score of a draw without a positive label."""

_PATIENCE = 120.0
"""Seconds that the draws of one metric may take."""


@dataclass
class TaskMetrics:
    """The metrics of a task, the contrasts of those that are means or ratios of sums, and notes on missing intervals."""

    metrics: dict[str, Estimate] = field(default_factory=dict)
    contrasts: list[Contrast] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    draws: dict[str, list[float | None]] = field(default_factory=dict)
    """Values on bootstrap draws of the metrics that are not means."""


@dataclass(frozen=True)
class Values:
    """A metric's value of each document, with the documents' items and the task's aggregation of the values."""

    values: list[Any]
    items: list[dict[str, Any]]
    aggregate: Aggregation

    @property
    def clusters(self) -> list[str]:
        return [item["cluster"] for item in self.items]

    def value(self, which: Sequence[int] | np.ndarray | None = None) -> float:
        """Return the aggregated value, of the documents ``which``; NaN where it is undefined."""
        chosen = self.values if which is None else [self.values[i] for i in which]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return float(self.aggregate(chosen))
        except (ArithmeticError, LookupError, TypeError, ValueError):
            return math.nan

    def draws(self, count: int) -> Iterator[np.ndarray]:
        """Yield the documents of ``count`` draws of clusters with replacement, the same on every call."""
        codes, number = cluster_codes(self.clusters)
        members = [np.flatnonzero(codes == code) for code in range(number)]
        random = np.random.default_rng(0)
        for _ in range(count):
            yield np.concatenate([members[code] for code in random.integers(number, size=number)])


def task_items(task: str, samples: Sequence[Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Return an item for each document, by ``doc_id``: its id, its cluster (default: its own), its task, and what was asked.

    ``prompt``, the ``answers`` to it that were scored with their ``logps`` (nats), or those that were generated, and ``target``.
    """
    items: dict[Any, dict[str, Any]] = {}
    for sample in samples:
        name = f"{task}:{sample['doc_id']}"
        doc = sample["doc"] if isinstance(sample["doc"], Mapping) else {}
        item = {"id": name, "cluster": str(doc.get("cluster") or name), "task": task} | _asked(sample)
        items.setdefault(sample["doc_id"], item)
    return items


def _asked(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document's prompt, answers and target as text, and the log-likelihoods of the answers."""
    arguments = [list(each) for each in sample.get("arguments") or () if isinstance(each, tuple | list) and each]
    first = [each[0] if isinstance(each, tuple | list) and each else each for each in sample.get("resps") or ()]
    scored = [each for each in first if isinstance(each, tuple | list) and len(each) == 2]
    found: dict[str, Any] = {"target": str(sample.get("target", ""))}
    if arguments:
        found["prompt"] = str(arguments[0][0])
    if scored and len(scored) == len(arguments):
        found["answers"] = [str(each[1]) for each in arguments if len(each) > 1]
        found["logps"] = [float(logp) for logp, _ in scored]
    else:
        found["answers"] = [each for each in first if isinstance(each, str)]
    return found


def measure(
    task: str,
    samples: Sequence[Mapping[str, Any]],
    items: Mapping[Any, dict[str, Any]],
    reported: Mapping[str, Any],
    aggregations: Mapping[str, Aggregation],
    better: Mapping[str, Any],
    resamples: int,
) -> TaskMetrics:
    """Return a task's metrics as lm-eval reports them.

    Args:
        task: name of the task.
        samples: lm-eval's record of each document and filter.
        items: the documents' items by ``doc_id``; the numbers that contrasts read are added.
        reported: lm-eval's results of the task.
        aggregations: the task's aggregation of each metric; the default is lm-eval's, the mean.
        better: whether a higher value of a metric is better.
        resamples: number of bootstrap draws.
    """
    found = TaskMetrics()
    for key, value in reported.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        name = f"{task}/{key_of(metric, chosen)}"
        if not isinstance(value, bool | int | float | np.number):
            found.notes.append(f"{name} is left out: lm-eval gives {type(value).__name__}, not a number")
            continue
        rows = [sample for sample in samples if sample["filter"] == chosen and metric in sample["metrics"]]
        documents = [items[row["doc_id"]] for row in rows]
        values = Values([row[metric] for row in rows], documents, aggregations.get(metric, _mean))
        higher = better.get(metric, True) is not False
        known = _as_mean(name, values, float(value), higher) or _as_likelihood(name, values, float(value))
        if known is None:
            found.metrics[name], why, drawn = bootstrap(values, float(value), resamples)
            found.notes += [f"{name} has no interval: {why}"] if why else []
            if not why and len(rows) == len(items):
                found.draws[name] = [number if math.isfinite(number) else None for number in drawn]
                found.contrasts.append(Contrast(name, "", where={"task": task}, higher_is_better=higher))
            continue
        found.metrics[name], contrast = known
        if contrast is not None and len(rows) == len(items):
            found.contrasts.append(contrast)
    return found


def key_of(metric: str, chosen: str) -> str:
    """Return the name of a metric after a filter, without that of lm-eval's default filter."""
    return metric if chosen == "none" else f"{metric}:{chosen}"


# ------------------------------------------------------------------------------------------------- closed forms


def _as_mean(name: str, values: Values, value: float, higher: bool) -> tuple[Estimate, Contrast] | None:
    """Return the estimate and contrast of a mean of numbers, which become the items' ``METRIC``; None for another metric."""
    task, _, key = name.partition("/")
    if not all(map(_is_number, values.values)):
        return None
    numbers = [float(number) for number in values.values]
    for item, number in zip(values.items, numbers, strict=True):
        item[key] = number
    if not _is(values, value, _mean):
        return None
    estimate = clustered_score(numbers, values.clusters)
    return estimate, Contrast(name, key, where={"task": task}, higher_is_better=higher)


def _as_likelihood(name: str, values: Values, value: float) -> tuple[Estimate, Contrast | None] | None:
    """Return the estimate of a perplexity, with its contrast, or of bits per byte; None for another metric.

    The items get ``METRIC:nll`` and ``METRIC:weight`` of the log-likelihoods, which have a weight or count once.
    """
    task, _, key = name.partition("/")
    pairs = [(number, 1.0) if _is_number(number) else number for number in values.values]
    if not all(map(_is_weighted, pairs)):
        return None
    nll, weight = [-float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    function = next((f for f in (math.exp, _bits) if _is(values, value, partial(_of_nats, f))), None)
    if function is None:
        return None
    for item, a, b in zip(values.items, nll, weight, strict=True):
        item |= {f"{key}:nll": a, f"{key}:weight": b}
    ratio = clustered_ratio(nll, weight, values.clusters)
    estimate = transformed(nonnegative(ratio) if min(nll) >= 0 else ratio, function)
    if function is _bits:
        return estimate, None
    numerator, denominator = f"{key}:nll", f"{key}:weight"
    return estimate, Contrast(name, numerator, denominator, where={"task": task}, higher_is_better=False, log=True)


def _is(values: Values, value: float, form: Callable[[list[Any]], float]) -> bool:
    """Whether the aggregation is ``form``: it agrees on all documents and on a few draws of them."""
    try:
        if not math.isclose(form(values.values), value, rel_tol=1e-6, abs_tol=1e-9):
            return False
        draws = [draw.tolist() for draw in values.draws(3)]
        return all(
            math.isclose(form([values.values[i] for i in draw]), values.value(draw), rel_tol=1e-6, abs_tol=1e-9)
            for draw in draws
        )
    except (ArithmeticError, TypeError, ValueError):
        return False


def _mean(values: list[Any]) -> float:
    return float(sum(values) / len(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number) and math.isfinite(value)


def _is_weighted(value: Any) -> bool:
    """Whether a value is a log-likelihood and its weight."""
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value)) and value[1] > 0


def _of_nats(function: Callable[[float], float], values: list[Any]) -> float:
    pairs = [(value, 1.0) if _is_number(value) else value for value in values]
    return function(-float(sum(a for a, _ in pairs) / sum(b for _, b in pairs)))


def _bits(nats: float) -> float:
    return nats / math.log(2)


# ------------------------------------------------------------------------------------------------- bootstrap


def bootstrap(values: Values, value: float, count: int) -> tuple[Estimate, str, list[float]]:
    """Return lm-eval's value with a bootstrap interval and the values on the draws, or without them and the reason.

    The ends are wider quantiles than those of 2.5 %, by Student's t with C - 1 degrees of freedom: draws of few clusters vary too
    little (Hesterberg 2015, The American Statistician 69(4), section 5.3).
    """
    if not math.isfinite(value):
        return Estimate(value), "it is not finite", []
    if not count:
        return Estimate(value), "eval.settings.lm-eval.resamples is 0", []
    if len(set(values.clusters)) < 2:
        return Estimate(value), "all documents are in one cluster", []
    if not math.isclose(values.value(), value, rel_tol=1e-6, abs_tol=1e-9):
        return Estimate(value), "the documents' values do not give it again", []
    started = time.monotonic()
    drawn: list[float] = []
    for draw in values.draws(count):
        drawn.append(values.value(draw))
        each = (time.monotonic() - started) / len(drawn)
        if each * count > _PATIENCE and (time.monotonic() - started) > _PATIENCE / 10:
            why = f"{count} draws of {each:.1f} s each take too long (eval.settings.lm-eval.resamples)"
            return Estimate(value), why, []
    usable = [number for number in drawn if math.isfinite(number)]
    if len(usable) < (1 - _UNDEFINED) * count:
        return Estimate(value), f"it is undefined in {count - len(usable)} of {count} bootstrap draws", []
    clusters = len(set(values.clusters))
    tail = float(special.ndtr(-math.sqrt(clusters / (clusters - 1)) * quantile((1 + LEVEL) / 2, clusters - 1)))
    low, high = np.quantile(usable, [tail, 1 - tail]).tolist()
    if low == high:
        return Estimate(value), f"it is the same in {count} bootstrap draws", []
    return Estimate(value, min(low, value), max(high, value)), "", drawn
