"""The harness's metrics as ``evaluate.Metric`` classes, for log-probabilities from any source. They work offline.

    metric = PreferenceAccuracy()
    metric.add_batch(chosen=[-3.0], rejected=[-4.5], chosen_tokens=[4], rejected_tokens=[3])
    metric.compute()

The suites' own functions compute the results. Importing this module takes seconds because importing ``evaluate`` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import evaluate
from alignkit import Estimate

from alignkit_eval.suites.perplexity import Document, perplexity_metrics
from alignkit_eval.suites.prefs import ScoredPair, pair_metrics
from alignkit_eval.suites.scores import CompletionScore

_NUMBER, _COUNT, _WORD = "float64", "int64", "string"


class _OfflineMetric(evaluate.Metric, ABC):
    """A metric that needs neither the hub nor a script."""

    summary: str
    inputs: str
    columns: Mapping[str, str]
    """Types of the inputs."""

    @abstractmethod
    def metrics(self, rows: Iterable[tuple[Any, ...]]) -> dict[str, Estimate]:
        """Compute the metrics of rows, which have the columns in their order."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value(kind) for name, kind in self.columns.items()})
        return evaluate.MetricInfo(self.summary, citation="", features=features, inputs_description=self.inputs)

    def _compute(self, **columns: Any) -> dict[str, Any]:
        rows = zip(*(columns[name] for name in self.columns), strict=True)
        return {name: estimate._asdict() for name, estimate in self.metrics(rows).items()}


class PreferenceAccuracy(_OfflineMetric):
    """Preference accuracy and margins, from the log-probabilities of chosen and rejected completions."""

    summary = "Preference accuracy by sum and by mean, with clustered 95 % intervals."
    inputs = (
        "chosen, rejected: summed log-probability of each completion; chosen_tokens, rejected_tokens: its scored tokens; "
        "cluster: pairs of one cluster are not independent (empty: each pair is its own cluster)."
    )
    columns = {
        "chosen": _NUMBER,
        "chosen_tokens": _COUNT,
        "rejected": _NUMBER,
        "rejected_tokens": _COUNT,
        "cluster": _WORD,
    }

    def metrics(self, rows: Iterable[tuple[Any, ...]]) -> dict[str, Estimate]:
        pairs = [
            ScoredPair(str(i), cluster or f"row-{i}", "", CompletionScore(a, n), CompletionScore(b, m))
            for i, (a, n, b, m, cluster) in enumerate(rows)
        ]
        return pair_metrics(pairs, bins=10)


class CorpusPerplexity(_OfflineMetric):
    """Perplexity and bits per byte of a corpus: ratios of sums, not means of per-text values."""

    summary = "Corpus perplexity and bits per byte, with clustered 95 % intervals."
    inputs = (
        "nll: negative log-likelihood of each text in nats; tokens: its scored tokens; bytes: its UTF-8 bytes; "
        "cluster: texts of one cluster are not independent (empty: each text is its own cluster)."
    )
    columns = {"nll": _NUMBER, "tokens": _COUNT, "bytes": _COUNT, "cluster": _WORD}

    def metrics(self, rows: Iterable[tuple[Any, ...]]) -> dict[str, Estimate]:
        return perplexity_metrics(
            [Document(str(i), cluster or f"text-{i}", *scored) for i, (*scored, cluster) in enumerate(rows)]
        )
